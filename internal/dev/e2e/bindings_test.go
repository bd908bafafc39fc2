package e2e

import (
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"taskmeta/internal/bindingdb"
	"taskmeta/internal/dev/testnet"
)

// What becomes of the bindings file while the resolver serves, what a task is told then, and
// the way back.
func TestTheBindingsFile(t *testing.T) {
	h := newHost(t)
	h.serve(t, "--rate", "0")
	web := h.task(t, "web")
	h.mustRun(t, "169.254.172.", "attach", "web-pause")
	ns, err := testnet.Open(web.netns)
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	kept := &http.Transport{DialContext: ns.DialContext}
	defer kept.CloseIdleConnections()
	fresh := &http.Transport{DialContext: ns.DialContext, DisableKeepAlives: true}

	// told asks on a new connection and on one that is kept, and wants the same of both.
	told := func(when string, status int, says string) {
		t.Helper()
		for name, transport := range map[string]*http.Transport{"a new": fresh, "a kept": kept} {
			req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url("/v2/metadata"), nil)
			if err != nil {
				t.Fatal(err)
			}
			resp, err := transport.RoundTrip(req)
			if err != nil {
				t.Fatalf("%s, on %s connection: %v", when, name, err)
			}
			body, err := io.ReadAll(resp.Body)
			resp.Body.Close()
			if err != nil || resp.StatusCode != status || !strings.Contains(string(body), says) {
				t.Errorf("%s, on %s connection: %s %s (%v); want %d with %q", when, name, resp.Status, body, err, status, says)
			}
			if again := resp.Header.Get("Retry-After"); (again != "") != (status == http.StatusServiceUnavailable) {
				t.Errorf("%s: %d with Retry-After %q", when, status, again)
			}
		}
	}
	file := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	aside := filepath.Join(h.dir, "aside.db")

	told("attached", http.StatusOK, web.arn)

	file(os.Rename(h.db(), aside))
	told("without the file", http.StatusForbidden, "NoBinding")
	file(os.Rename(aside, h.db()))
	told("with the file again", http.StatusOK, web.arn)

	content, err := os.ReadFile(h.db())
	file(err)
	file(os.WriteFile(aside, content, 0o600))
	file(os.Rename(aside, h.db()))
	told("with a copy in the file's place", http.StatusOK, web.arn)

	store, err := bindingdb.Open(t.Context(), aside, bindingdb.Options{Create: true})
	file(err)
	file(store.Close())
	file(os.Rename(aside, h.db()))
	told("with an empty file in its place", http.StatusForbidden, "NoBinding")

	file(os.WriteFile(h.db(), content[:len(content)/2], 0o600))
	told("with half a file", http.StatusServiceUnavailable, "BindingsUnavailable")
	h.mustSay(t, http.StatusServiceUnavailable, "bindings repair")
	h.resolver.AwaitLog(t, `"code":"BindingsUnavailable"`, "bindings repair")
	h.mustRun(t, "was written anew with 1 bindings", "bindings", "repair")
	told("with the file written anew", http.StatusOK, web.arn)
	h.mustSay(t, http.StatusOK, "")

	// A writer that hangs: what it has not changed is known without it.
	lock, err := os.OpenFile(h.db()+".lock", os.O_RDWR, 0)
	file(err)
	defer lock.Close()
	file(unix.Flock(int(lock.Fd()), unix.LOCK_EX))
	told("while somebody holds the lock", http.StatusOK, web.arn)
	content, err = os.ReadFile(h.db())
	file(err)
	file(os.WriteFile(aside, content, 0o600))
	file(os.Rename(aside, h.db()))
	if status, body, err := testnet.Get(t.Context(), fresh, url("/v2/metadata")); err != nil || status != http.StatusServiceUnavailable || !strings.Contains(body, "BindingsUnavailable") {
		t.Errorf("a change while somebody holds the lock: %d %s (%v); want 503", status, body, err)
	}
	h.resolver.AwaitLog(t, ".lock")
	file(unix.Flock(int(lock.Fd()), unix.LOCK_UN))
	told("once the lock is free", http.StatusOK, web.arn)
	h.mustRun(t, "is free", "detach", "web-pause")
	if _, _, err := testnet.Get(t.Context(), fresh, url("/v2/metadata")); err == nil {
		t.Error("after it is detached the task is answered")
	}
}
