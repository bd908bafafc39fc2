// Commit does one bbolt transaction in the file that its argument names: the least that a
// program with a durable store takes.
package main

import (
	"fmt"
	"os"

	"go.etcd.io/bbolt"
)

func main() {
	if err := commit(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "commit:", err)
		os.Exit(1)
	}
}

func commit(path string) error {
	db, err := bbolt.Open(path, 0o600, nil)
	if err != nil {
		return err
	}
	defer db.Close()
	return db.Update(func(tx *bbolt.Tx) error {
		b, err := tx.CreateBucketIfNotExists([]byte("b"))
		if err != nil {
			return err
		}
		return b.Put([]byte("key"), []byte("value"))
	})
}
