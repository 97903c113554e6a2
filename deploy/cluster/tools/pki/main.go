// Pki writes the keys, certificates and kubeconfigs of a cluster.
//
// Everything lives as long as the cluster, is signed by one authority made for
// it, and is never renewed: a cluster here lasts hours.
package main

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"flag"
	"fmt"
	"log"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"
)

const lifetime = 30 * 24 * time.Hour

func main() {
	log.SetFlags(0)
	log.SetPrefix("pki: ")
	out := flag.String("out", "", "folder to write to")
	server := flag.String("server", "", "address of the API server, as host:port")
	service := flag.String("service", "", "cluster address of the Service kubernetes")
	nodes := flag.String("nodes", "", "name=address of each node, separated by commas")
	flag.Parse()
	if *out == "" || *server == "" || *service == "" || flag.NArg() > 0 {
		flag.Usage()
		os.Exit(64)
	}

	host, _, err := net.SplitHostPort(*server)
	must(err)
	must(os.MkdirAll(*out, 0o700))
	p := pki{out: *out, url: "https://" + *server}
	p.authority = p.selfSigned("ca", "duet-kube")
	// What the API server shows to the API servers that extend it has an
	// authority of its own: it vouches for names, not for callers.
	front := p.selfSigned("front-proxy-ca", "duet-kube-front-proxy")
	p.issue(front, subject{file: "front-proxy", name: "front-proxy"})

	p.issue(p.authority, subject{file: "apiserver", name: "kube-apiserver", hosts: []string{
		host, *service, "127.0.0.1", "localhost",
		"kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local",
	}})
	p.issue(p.authority, subject{file: "apiserver-kubelet", name: "kube-apiserver-kubelet", group: "system:masters"})
	// The key that signs service account tokens.
	p.writeKey("service-account", newKey())

	p.client("admin", "duet-kube-admin", "system:masters")
	p.client("controller-manager", "system:kube-controller-manager", "")
	p.client("scheduler", "system:kube-scheduler", "")
	p.client("proxy", "system:kube-proxy", "")
	for _, node := range strings.Split(*nodes, ",") {
		name, address, found := strings.Cut(node, "=")
		if !found {
			log.Fatalf("node %q: expected name=address", node)
		}
		p.issue(p.authority, subject{file: name, name: "system:node:" + name, group: "system:nodes", hosts: []string{name, address}})
		p.kubeconfig(name)
	}
}

type pki struct {
	out, url  string
	authority signer
}

type signer struct {
	certificate *x509.Certificate
	key         crypto.Signer
}

type subject struct {
	file, name, group string
	// Names and addresses it serves under; every certificate also suits a client.
	hosts []string
}

func (p pki) client(file, name, group string) {
	p.issue(p.authority, subject{file: file, name: name, group: group})
	p.kubeconfig(file)
}

func (p pki) selfSigned(file, name string) signer {
	key := newKey()
	template := template(name)
	template.IsCA = true
	template.BasicConstraintsValid = true
	template.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	must(err)
	certificate, err := x509.ParseCertificate(der)
	must(err)
	p.write(file+".crt", "CERTIFICATE", der)
	p.writeKey(file, key)
	return signer{certificate, key}
}

func (p pki) issue(by signer, s subject) {
	key := newKey()
	template := template(s.name)
	if s.group != "" {
		template.Subject.Organization = []string{s.group}
	}
	template.KeyUsage = x509.KeyUsageDigitalSignature
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	if len(s.hosts) > 0 {
		template.ExtKeyUsage = append(template.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
	}
	for _, host := range s.hosts {
		if address := net.ParseIP(host); address != nil {
			template.IPAddresses = append(template.IPAddresses, address)
		} else {
			template.DNSNames = append(template.DNSNames, host)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, by.certificate, key.Public(), by.key)
	must(err)
	p.write(s.file+".crt", "CERTIFICATE", der)
	p.writeKey(s.file, key)
}

// The kubeconfig of the client whose key and certificate bear that file name,
// with both inside, so that it can be used from anywhere.
func (p pki) kubeconfig(file string) {
	read := func(name string) []byte {
		content, err := os.ReadFile(filepath.Join(p.out, name))
		must(err)
		return content
	}
	encode := base64.StdEncoding.EncodeToString
	content := fmt.Sprintf(`apiVersion: v1
kind: Config
current-context: duet-kube
contexts: [{name: duet-kube, context: {cluster: duet-kube, user: %[1]s}}]
clusters:
- name: duet-kube
  cluster: {server: %[2]q, certificate-authority-data: %[3]s}
users:
- name: %[1]s
  user: {client-certificate-data: %[4]s, client-key-data: %[5]s}
`, file, p.url, encode(read("ca.crt")), encode(read(file+".crt")), encode(read(file+".key")))
	must(os.WriteFile(filepath.Join(p.out, file+".kubeconfig"), []byte(content), 0o600))
}

func template(name string) *x509.Certificate {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	must(err)
	return &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: name},
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().Add(lifetime),
	}
}

func newKey() crypto.Signer {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(err)
	return key
}

func (p pki) writeKey(file string, key crypto.Signer) {
	private, err := x509.MarshalPKCS8PrivateKey(key)
	must(err)
	p.write(file+".key", "PRIVATE KEY", private)
	public, err := x509.MarshalPKIXPublicKey(key.Public())
	must(err)
	p.write(file+".pub", "PUBLIC KEY", public)
}

func (p pki) write(file, kind string, der []byte) {
	content := pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
	must(os.WriteFile(filepath.Join(p.out, file), content, 0o600))
}

func must(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
