// Sbom says what a binary is made of: CycloneDX, from Cargo's own resolution.
//
//	cargo tree --locked --target x86_64-unknown-linux-gnu -e normal,no-proc-macro --prefix depth -f '{p}|{l}' -p duet-control -p duet-agent |
//	  go run sbom.go -package duet-control -lock Cargo.lock -debian nftables=1.0.6-2+deb12u2
//
// It lists what is compiled in, with the features that these packages have when
// they are built together: so the tree must be that of all that are. The same
// input gives the same file.
package main

import (
	"bufio"
	"crypto/sha256"
	"encoding/json"
	"flag"
	"fmt"
	"log"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

type object map[string]any

// A line of the tree; (*) is a package whose dependencies were listed before.
var line = regexp.MustCompile(`^(\d+)(\S+) v(\S+)(?: \(.*?\))?\|(.*?)(?: \(\*\))?$`)

func main() {
	log.SetFlags(0)
	log.SetPrefix("sbom: ")
	name := flag.String("package", "", "the package that the binary is of")
	lock := flag.String("lock", "Cargo.lock", "for checksums")
	debian := []object{}
	flag.Func("debian", "name=version of a Debian package in the same image; may be repeated", func(s string) error {
		name, version, _ := strings.Cut(s, "=")
		id := "pkg:deb/debian/" + name + "@" + strings.NewReplacer("+", "%2B", ":", "%3A").Replace(version)
		debian = append(debian, object{"type": "library", "bom-ref": id, "purl": id, "name": name, "version": version})
		return nil
	})
	flag.Parse()
	locked, err := os.ReadFile(*lock)
	must(err)

	crates, edges, root := map[string]object{}, map[string][]string{}, ""
	var path []string // from a root to the line
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		if lines.Text() == "" {
			continue
		}
		match := line.FindStringSubmatch(lines.Text())
		if match == nil {
			log.Fatalf("%q: not a line of cargo tree as it is called above", lines.Text())
		}
		depth, _ := strconv.Atoi(match[1])
		id := "pkg:cargo/" + match[2] + "@" + strings.ReplaceAll(match[3], "+", "%2B")
		crates[id] = crate(id, match[2], match[3], match[4], string(locked))
		if path = append(path[:depth], id); depth > 0 {
			edges[path[depth-1]] = append(edges[path[depth-1]], id)
		} else if match[2] == *name {
			root = id
		}
	}
	must(lines.Err())
	if root == "" {
		log.Fatalf("-package %q is not at the root of the tree", *name)
	}

	reached := []string{root}
	for i := 0; i < len(reached); i++ {
		for _, id := range edges[reached[i]] {
			if !slices.Contains(reached, id) {
				reached = append(reached, id)
			}
		}
	}
	slices.Sort(reached)
	components, graph := debian, []object{}
	for _, id := range reached {
		slices.Sort(edges[id])
		graph = append(graph, object{"ref": id, "dependsOn": append([]string{}, slices.Compact(edges[id])...)})
		if id != root {
			components = append(components, crates[id])
		}
	}
	subject := crates[root]
	subject["type"] = "application"
	bom := object{
		"bomFormat": "CycloneDX", "specVersion": "1.5", "version": 1,
		"metadata": object{"component": subject}, "components": components, "dependencies": graph,
	}
	content, err := json.Marshal(bom)
	must(err)
	sum := sha256.Sum256(content)
	// A UUID of version 8: ours to make, here of the content.
	sum[6], sum[8] = sum[6]&0x0f|0x80, sum[8]&0x3f|0x80
	bom["serialNumber"] = fmt.Sprintf("urn:uuid:%x-%x-%x-%x-%x", sum[:4], sum[4:6], sum[6:8], sum[8:10], sum[10:16])
	out := json.NewEncoder(os.Stdout)
	out.SetIndent("", " ")
	must(out.Encode(bom))
}

func crate(id, name, version, license, lock string) object {
	c := object{"type": "library", "bom-ref": id, "purl": id, "name": name, "version": version}
	if license != "" {
		// "MIT / Apache-2.0" is how crates wrote it before SPDX expressions.
		expression := strings.Join(strings.Fields(strings.ReplaceAll(license, "/", " OR ")), " ")
		c["licenses"] = []object{{"expression": expression}}
	}
	checksum := regexp.MustCompile(`name = "` + name + `"\nversion = "` + regexp.QuoteMeta(version) + `"\nsource = .*\nchecksum = "([0-9a-f]{64})"`)
	if match := checksum.FindStringSubmatch(lock); match != nil {
		c["hashes"] = []object{{"alg": "SHA-256", "content": match[1]}}
	}
	return c
}

func must(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
