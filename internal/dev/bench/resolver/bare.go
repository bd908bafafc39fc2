package main

import (
	"context"
	"net/http"
	"os"
	"strconv"
)

// bare is `resolver bare`: the least that an HTTP service in Go takes, a handler of net/http
// that writes the bytes of a file, whatever is asked for. It serves until it is ended.
func bare(ctx context.Context, address, file string) error {
	body, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	context.AfterFunc(ctx, func() { os.Exit(0) })
	length := strconv.Itoa(len(body))
	return http.ListenAndServe(address, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Content-Length", length)
		_, _ = w.Write(body) // fails when the client has left
	}))
}
