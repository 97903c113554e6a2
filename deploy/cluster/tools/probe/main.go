// Probe is what the cluster's check runs in pods: it serves, asks, resolves and
// asks the API server who a token belongs to. One static binary, so that the
// image needs nothing else.
//
//	probe serve ADDRESS               answers with the pod's name and node
//	probe get URL                     prints the answer
//	probe resolve NAME                prints the addresses
//	probe review TOKENFILE AUDIENCE   prints TokenReview's answer
//	probe sleep SECONDS
package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"time"
)

const account = "/var/run/secrets/kubernetes.io/serviceaccount/"

func main() {
	log.SetFlags(0)
	arguments := append(os.Args[1:], "", "", "")
	switch arguments[0] {
	case "serve":
		fmt.Println("serving on", arguments[1])
		http.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprintf(w, "%s on %s\n", os.Getenv("POD"), os.Getenv("NODE"))
		})
		log.Fatal(http.ListenAndServe(arguments[1], nil))
	case "get":
		client := http.Client{Timeout: 5 * time.Second}
		response, err := client.Get(arguments[1])
		must(err)
		_, err = io.Copy(os.Stdout, response.Body)
		must(err)
	case "resolve":
		within, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		addresses, err := net.DefaultResolver.LookupHost(within, arguments[1])
		must(err)
		fmt.Println(addresses)
	case "review":
		review(arguments[1], arguments[2])
	case "sleep":
		length, err := time.ParseDuration(arguments[1] + "s")
		must(err)
		time.Sleep(length)
	default:
		log.Fatalf("probe: unknown command %q", arguments[0])
	}
}

func review(tokenFile, audience string) {
	read := func(name string) []byte {
		content, err := os.ReadFile(name)
		must(err)
		return content
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(read(account + "ca.crt"))
	client := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}}}

	body, err := json.Marshal(map[string]any{
		"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview",
		"spec": map[string]any{"token": string(read(tokenFile)), "audiences": []string{audience}},
	})
	must(err)
	request, err := http.NewRequest("POST", "https://kubernetes.default.svc/apis/authentication.k8s.io/v1/tokenreviews", bytes.NewReader(body))
	must(err)
	request.Header.Set("Content-Type", "application/json")
	request.Header.Set("Authorization", "Bearer "+string(read(account+"token")))
	response, err := client.Do(request)
	must(err)
	var answer struct{ Status, Message json.RawMessage }
	must(json.NewDecoder(response.Body).Decode(&answer))
	fmt.Printf("%s %s\n", answer.Status, answer.Message)
}

func must(err error) {
	if err != nil {
		log.Fatal("probe: ", err)
	}
}
