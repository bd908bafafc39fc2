package testnet

import (
	"testing"
	"time"

	"go.etcd.io/bbolt"
)

// CheckPages has bbolt check a bindings file, page by page.
func CheckPages(t testing.TB, path string) {
	t.Helper()
	db, err := bbolt.Open(path, 0, &bbolt.Options{ReadOnly: true, Timeout: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	_ = db.View(func(tx *bbolt.Tx) error {
		for err := range tx.Check() {
			t.Error(err)
		}
		return nil
	})
}
