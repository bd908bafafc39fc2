// Image writes the container image of the resolver, from scratch: one layer with the three
// static programs. The file is an OCI image layout in a tar, with the manifest.json beside
// it that `docker load` reads, so that Docker, Podman, nerdctl and skopeo all take it.
package main

import (
	"archive/tar"
	"bytes"
	_ "crypto/sha256" // the algorithm of the digests
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// name is what the image is called once it is loaded, with the version as its tag.
const name = "taskmeta"

// files are what is in the image, and where `make build` left it.
var files = []struct{ path, from string }{
	{"opt/cni/bin/ecs-bridge", "bin/ecs-bridge"},
	{"opt/cni/bin/ecs-ipam", "bin/ecs-ipam"},
	{"usr/sbin/ecs-resolver", "bin/ecs-resolver"},
}

func main() {
	version := flag.String("version", "latest", "the `version` to label the image with")
	flag.Parse()
	if flag.NArg() != 1 {
		fmt.Fprintln(os.Stderr, "usage: image [-version VERSION] FILE")
		os.Exit(2)
	}
	if err := run(*version, flag.Arg(0)); err != nil {
		fmt.Fprintln(os.Stderr, "image:", err)
		os.Exit(1)
	}
}

func run(version, out string) error {
	created, err := creation()
	if err != nil {
		return err
	}
	image, err := build(version, created)
	if err != nil {
		return err
	}
	return os.WriteFile(out, image, 0o644)
}

// creation is SOURCE_DATE_EPOCH, so that the same sources make the same image, or now.
func creation() (time.Time, error) {
	text := os.Getenv("SOURCE_DATE_EPOCH")
	if text == "" {
		return time.Now().UTC().Truncate(time.Second), nil
	}
	seconds, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		return time.Time{}, fmt.Errorf("SOURCE_DATE_EPOCH is %q: expected seconds since 1970", text)
	}
	return time.Unix(seconds, 0).UTC(), nil
}

// build returns the image's file.
func build(version string, created time.Time) ([]byte, error) {
	layer := newArchive(created)
	for _, f := range files {
		content, err := os.ReadFile(f.from)
		if err != nil {
			return nil, fmt.Errorf("%w; run make build first", err)
		}
		layer.add(f.path, 0o755, content)
	}
	rootFS, err := layer.close()
	if err != nil {
		return nil, err
	}
	out := newArchive(created)
	layerAt := out.blob(v1.MediaTypeImageLayer, rootFS)
	config := v1.Image{
		Created:  &created,
		Platform: v1.Platform{OS: "linux", Architecture: runtime.GOARCH},
		Config: v1.ImageConfig{
			Entrypoint: []string{"/usr/sbin/ecs-resolver"},
			Env:        []string{"PATH=/usr/sbin:/opt/cni/bin"},
			Labels:     map[string]string{v1.AnnotationTitle: name, v1.AnnotationVersion: version, v1.AnnotationLicenses: "Apache-2.0"},
		},
		RootFS: v1.RootFS{Type: "layers", DiffIDs: []digest.Digest{layerAt.Digest}},
	}
	configAt := out.json(v1.MediaTypeImageConfig, config)
	manifestAt := out.json(v1.MediaTypeImageManifest, v1.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: v1.MediaTypeImageManifest,
		Config:    configAt,
		Layers:    []v1.Descriptor{layerAt},
	})
	tag := reference(version)
	manifestAt.Annotations = map[string]string{v1.AnnotationRefName: tag, "io.containerd.image.name": "docker.io/library/" + tag}
	out.addJSON(v1.ImageIndexFile, v1.Index{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: v1.MediaTypeImageIndex,
		Manifests: []v1.Descriptor{manifestAt},
	})
	out.addJSON(v1.ImageLayoutFile, v1.ImageLayout{Version: v1.ImageLayoutVersion})
	out.addJSON("manifest.json", []map[string]any{{
		"Config": blobPath(configAt), "RepoTags": []string{tag}, "Layers": []string{blobPath(layerAt)},
	}})
	return out.close()
}

// reference is the image's name with a tag, in which a + may not stand.
func reference(version string) string {
	return name + ":" + strings.ReplaceAll(version, "+", "-")
}

// An archive is a tar that is being written. Its first error is kept for close.
type archive struct {
	buf     bytes.Buffer
	tar     *tar.Writer
	created time.Time
	made    map[string]bool // directories
	err     error
}

func newArchive(created time.Time) *archive {
	a := &archive{created: created, made: map[string]bool{".": true}}
	a.tar = tar.NewWriter(&a.buf)
	return a
}

// add adds a file, and the directories above it that are not there yet.
func (a *archive) add(name string, mode int64, content []byte) {
	a.directory(path.Dir(name))
	err := a.tar.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: mode, Size: int64(len(content)), ModTime: a.created})
	if err == nil {
		_, err = a.tar.Write(content)
	}
	a.err = errors.Join(a.err, err)
}

func (a *archive) directory(name string) {
	if a.made[name] {
		return
	}
	a.directory(path.Dir(name))
	a.made[name] = true
	a.err = errors.Join(a.err, a.tar.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: 0o755, ModTime: a.created}))
}

func (a *archive) addJSON(name string, v any) {
	content, err := json.Marshal(v)
	a.err = errors.Join(a.err, err)
	a.add(name, 0o644, content)
}

// blob adds what is found by its digest.
func (a *archive) blob(mediaType string, content []byte) v1.Descriptor {
	d := v1.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(content), Size: int64(len(content))}
	a.add(blobPath(d), 0o644, content)
	return d
}

func (a *archive) json(mediaType string, v any) v1.Descriptor {
	content, err := json.Marshal(v)
	a.err = errors.Join(a.err, err)
	return a.blob(mediaType, content)
}

func blobPath(d v1.Descriptor) string {
	return path.Join(v1.ImageBlobsDir, d.Digest.Algorithm().String(), d.Digest.Encoded())
}

func (a *archive) close() ([]byte, error) {
	if err := errors.Join(a.err, a.tar.Close()); err != nil {
		return nil, fmt.Errorf("writing an archive: %w", err)
	}
	return a.buf.Bytes(), nil
}
