// Pack makes a docker-archive of one layer out of files, without a daemon.
//
//	pack -name web:1 -out web.tar -entrypoint /web -user 65532 /web=path/to/web /etc/web.yaml=path/to/web.yaml
//
// The same files give the same archive: no times, one owner, sorted entries.
package main

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"log"
	"os"
	"path"
	"runtime"
	"slices"
	"strings"
	"time"
)

var epoch = time.Unix(0, 0).UTC()

type list []string

func (l *list) String() string     { return strings.Join(*l, " ") }
func (l *list) Set(s string) error { *l = append(*l, s); return nil }

func main() {
	log.SetFlags(0)
	log.SetPrefix("pack: ")
	var env, labels list
	name := flag.String("name", "", "name:tag of the image; with a tag other than latest, or it is never found without a registry")
	out := flag.String("out", "", "archive to write")
	entrypoint := flag.String("entrypoint", "", "command line, split at spaces")
	user := flag.String("user", "", "uid or uid:gid to run as")
	flag.Var(&env, "env", "NAME=value; may be repeated")
	flag.Var(&labels, "label", "name=value; may be repeated")
	flag.Parse()
	if *name == "" || *out == "" || flag.NArg() == 0 {
		flag.Usage()
		os.Exit(64)
	}

	files := map[string]string{}
	for _, argument := range flag.Args() {
		inside, outside, found := strings.Cut(argument, "=")
		if !found || !path.IsAbs(inside) {
			log.Fatalf("%q: expected /path/in/image=file", argument)
		}
		files[path.Clean(inside)] = outside
	}
	layer, err := layer(files)
	must(err)

	config := map[string]any{
		"architecture": runtime.GOARCH,
		"os":           "linux",
		"created":      epoch.Format(time.RFC3339),
		"config": map[string]any{
			"Entrypoint": strings.Fields(*entrypoint),
			"User":       *user,
			"Env":        append(list{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}, env...),
			"Labels":     pairs(labels),
			"WorkingDir": "/",
		},
		"rootfs":  map[string]any{"type": "layers", "diff_ids": []string{"sha256:" + digest(layer)}},
		"history": []any{map[string]any{"created": epoch.Format(time.RFC3339), "created_by": "pack"}},
	}
	configuration, err := json.Marshal(config)
	must(err)
	configFile, layerFile := digest(configuration)+".json", digest(layer)+"/layer.tar"
	manifest, err := json.Marshal([]any{map[string]any{
		"Config": configFile, "RepoTags": []string{*name}, "Layers": []string{layerFile},
	}})
	must(err)

	archive, err := os.Create(*out)
	must(err)
	w := tar.NewWriter(archive)
	must(file(w, configFile, 0o644, configuration))
	must(file(w, layerFile, 0o644, layer))
	must(file(w, "manifest.json", 0o644, manifest))
	must(w.Close())
	must(archive.Close())
	fmt.Printf("%s  %s  %.1f MB\n", *out, *name, float64(len(layer))/1e6)
}

// The layer with these files, the folders that lead to them, and a /tmp.
func layer(files map[string]string) ([]byte, error) {
	folders := map[string]int64{"/tmp": 0o1777}
	for inside := range files {
		for folder := path.Dir(inside); folder != "/"; folder = path.Dir(folder) {
			if _, known := folders[folder]; !known {
				folders[folder] = 0o755
			}
		}
	}
	var entries []string
	for folder := range folders {
		entries = append(entries, folder)
	}
	for inside := range files {
		entries = append(entries, inside)
	}
	slices.Sort(entries)

	var content bytes.Buffer
	w := tar.NewWriter(&content)
	for _, entry := range entries {
		relative := strings.TrimPrefix(entry, "/")
		if mode, isFolder := folders[entry]; isFolder {
			header := &tar.Header{Typeflag: tar.TypeDir, Name: relative + "/", Mode: mode, ModTime: epoch}
			if err := w.WriteHeader(header); err != nil {
				return nil, err
			}
			continue
		}
		source, err := os.Open(files[entry])
		if err != nil {
			return nil, err
		}
		body, err := io.ReadAll(source)
		if err != nil {
			return nil, err
		}
		information, err := source.Stat()
		if err != nil {
			return nil, err
		}
		source.Close()
		mode := int64(0o644)
		if information.Mode()&0o100 != 0 {
			mode = 0o755
		}
		if err := file(w, relative, mode, body); err != nil {
			return nil, err
		}
	}
	err := w.Close()
	return content.Bytes(), err
}

func file(w *tar.Writer, name string, mode int64, content []byte) error {
	header := &tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: mode, Size: int64(len(content)), ModTime: epoch}
	if err := w.WriteHeader(header); err != nil {
		return err
	}
	_, err := w.Write(content)
	return err
}

func pairs(entries list) map[string]string {
	result := map[string]string{}
	for _, entry := range entries {
		name, value, _ := strings.Cut(entry, "=")
		result[name] = value
	}
	return result
}

func digest(content []byte) string {
	sum := sha256.Sum256(content)
	return hex.EncodeToString(sum[:])
}

func must(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
