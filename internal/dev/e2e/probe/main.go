// Probe is the client that the end-to-end tests run inside containers. `probe METHOD URL
// [HEADER: VALUE]...` sends one request and prints the whole reply as it came over the
// wire; `probe wait` does nothing until it is ended.
package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httputil"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "probe:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if len(args) == 1 && args[0] == "wait" {
		<-ctx.Done()
		return nil
	}
	if len(args) < 2 {
		return errors.New("expected wait, or METHOD URL [HEADER: VALUE]")
	}
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, args[0], args[1], nil)
	if err != nil {
		return err
	}
	for _, header := range args[2:] {
		key, value, _ := strings.Cut(header, ": ")
		if key == "Host" {
			req.Host = value
			continue
		}
		req.Header.Set(key, value)
	}
	client := http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	dump, err := httputil.DumpResponse(resp, true)
	if err != nil {
		return err
	}
	_, err = os.Stdout.Write(dump)
	return err
}
