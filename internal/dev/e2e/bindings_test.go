package e2e

import (
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"taskmeta/internal/bindingdb"
	"taskmeta/internal/dev/testnet"
)

// An asker asks for a task's metadata from inside the task, on a new connection and on one
// that is kept.
type asker struct{ fresh, kept *http.Transport }

func newAsker(t *testing.T, k *task) asker {
	t.Helper()
	ns, err := testnet.Open(k.netns)
	done(t, err)
	a := asker{fresh: ns.Transport(net.Dialer{}), kept: ns.Transport(net.Dialer{})}
	a.fresh.DisableKeepAlives = true
	t.Cleanup(func() {
		a.kept.CloseIdleConnections()
		done(t, ns.Close())
	})
	return a
}

// told checks that both connections give the same answer.
func (a asker) told(t *testing.T, when string, status int, says string) {
	t.Helper()
	for name, transport := range map[string]*http.Transport{"a new": a.fresh, "a kept": a.kept} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url("/v2/metadata"), nil)
		done(t, err)
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

// done ends a test whose own step failed.
func done(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	content, err := os.ReadFile(path)
	done(t, err)
	return content
}

// What becomes of the bindings file while the resolver serves, what a task is told then, and
// the way back.
func TestTheBindingsFile(t *testing.T) {
	h := newHost(t)
	h.serve(t, "--rate", "0")
	web := h.task(t, "web")
	h.mustRun(t, "169.254.172.", "attach", "web-pause")
	a := newAsker(t, web)
	aside := filepath.Join(h.dir, "aside.db")

	a.told(t, "attached", http.StatusOK, web.arn)

	done(t, os.Rename(h.db(), aside))
	a.told(t, "without the file", http.StatusForbidden, "NoBinding")
	done(t, os.Rename(aside, h.db()))
	a.told(t, "with the file again", http.StatusOK, web.arn)

	content := read(t, h.db())
	done(t, os.WriteFile(aside, content, 0o600))
	done(t, os.Rename(aside, h.db()))
	a.told(t, "with a copy in the file's place", http.StatusOK, web.arn)

	store, err := bindingdb.Open(t.Context(), aside, bindingdb.Options{Create: true})
	done(t, err)
	done(t, store.Close())
	done(t, os.Rename(aside, h.db()))
	a.told(t, "with an empty file in its place", http.StatusForbidden, "NoBinding")

	done(t, os.WriteFile(h.db(), content[:len(content)/2], 0o600))
	a.told(t, "with half a file", http.StatusServiceUnavailable, "BindingsUnavailable")
	h.mustSay(t, http.StatusServiceUnavailable, "bindings repair")
	h.resolver.AwaitLog(t, `"code":"BindingsUnavailable"`, "bindings repair")
	h.mustRun(t, "was written anew with 1 bindings", "bindings", "repair")
	a.told(t, "with the file written anew", http.StatusOK, web.arn)
	h.mustSay(t, http.StatusOK, "")
	a.survivesALock(t, h, web)
	h.mustRun(t, "is free", "detach", "web-pause")
	if _, _, err := testnet.Get(t.Context(), a.fresh, url("/v2/metadata")); err == nil {
		t.Error("after it is detached the task is answered")
	}
}

// survivesALock is the part with a writer that hangs: what it has not changed is known
// without it.
func (a asker) survivesALock(t *testing.T, h *host, web *task) {
	t.Helper()
	aside := filepath.Join(h.dir, "aside.db")
	lock, err := os.OpenFile(h.db()+".lock", os.O_RDWR, 0)
	done(t, err)
	defer lock.Close()
	done(t, unix.Flock(int(lock.Fd()), unix.LOCK_EX))
	a.told(t, "while somebody holds the lock", http.StatusOK, web.arn)
	done(t, os.WriteFile(aside, read(t, h.db()), 0o600))
	done(t, os.Rename(aside, h.db()))
	if status, body, err := testnet.Get(t.Context(), a.fresh, url("/v2/metadata")); err != nil || status != http.StatusServiceUnavailable || !strings.Contains(body, "BindingsUnavailable") {
		t.Errorf("a change while somebody holds the lock: %d %s (%v); want 503", status, body, err)
	}
	h.resolver.AwaitLog(t, ".lock")
	done(t, unix.Flock(int(lock.Fd()), unix.LOCK_UN))
	a.told(t, "once the lock is free", http.StatusOK, web.arn)
}
