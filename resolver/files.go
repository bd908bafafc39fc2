package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"taskmeta/internal/bindingdb"
	"taskmeta/internal/ecs"
)

// removeFiles removes the bindings file and what stands beside it. A file that has bindings of
// AWS's plugins is still theirs.
func removeFiles(out io.Writer, db string, all []*ecs.Binding, unread error, say func(string)) error {
	if unread != nil && !errors.Is(unread, ecs.ErrDamaged) {
		return unread
	}
	dir := filepath.Dir(db)
	paths := []string{db + ".lock", db + ".new", filepath.Join(dir, "attach.lock"), filepath.Join(dir, "ports.lock")}
	kept, err := filepath.Glob(db + ".damaged-*")
	if err != nil {
		return err
	}
	paths = append(paths, kept...)
	if slices.ContainsFunc(all, func(b *ecs.Binding) bool { return b.Network == "" }) {
		_, err := fmt.Fprintf(out, "left %s: it has attachments of AWS's plugins\n", db)
		return err
	}
	results, err := cniResults(filepath.Join(dir, "cni", "results"))
	if err != nil {
		return err
	}
	marks, err := filepath.Glob(filepath.Join(dir, "cni", "adding", "*"))
	if err != nil {
		return err
	}
	paths = slices.Concat([]string{db}, paths, results, marks)
	var errs []error
	for _, path := range paths {
		switch err := os.Remove(path); {
		case err == nil:
			say(path)
		case !errors.Is(err, fs.ErrNotExist):
			errs = append(errs, err)
		}
	}
	for _, folder := range []string{"cni/results", "cni/adding", "cni"} {
		errs = append(errs, removeEmpty(filepath.Join(dir, folder), say))
	}
	return errors.Join(errs...)
}

// cniResults are the files in which libcni keeps what attach and auto-attach have attached.
// Others may keep their own in a folder of that name.
func cniResults(dir string) (ours []string, err error) {
	all, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil {
		return nil, err
	}
	for _, path := range all {
		text, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		var cached struct {
			Kind   string
			Config []byte // the network's configuration
		}
		if json.Unmarshal(text, &cached) == nil && cached.Kind == "cniCacheV1" && strings.Contains(string(cached.Config), `"ecs-bridge"`) {
			ours = append(ours, path)
		}
	}
	return ours, nil
}

// removeDir removes the folder of the bindings file if it is the default one and empty. Any
// other may be an administrator's.
func removeDir(db string, say func(string)) error {
	if db != bindingdb.DefaultPath {
		return nil
	}
	return removeEmpty(filepath.Dir(db), say)
}

func removeEmpty(dir string, say func(string)) error {
	left, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) || err == nil && len(left) > 0 {
		return nil
	}
	if err == nil {
		err = os.Remove(dir)
	}
	if err == nil {
		say(dir)
	}
	return err
}
