package metadata

import (
	"bufio"
	"bytes"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
)

// FuzzRequest gives the handler whatever net/http takes for a request. The answer must be
// one of the API's, whole JSON, and must not tell of the other task.
func FuzzRequest(f *testing.F) {
	for _, request := range []string{
		get,
		"HEAD /v2/metadata/app/ HTTP/1.0\r\n\r\n",
		"GET /v2/metadataWithTags?x HTTP/1.1\r\nHost: [::ffff:169.254.170.2]:80\r\n\r\n",
		"GET /v2/stats/%2e%2e/" + otherID + " HTTP/1.1\r\nHost: 169.254.170.2\r\n\r\n",
		"GET /v2/stats/" + otherID[:12] + " HTTP/1.1\r\nHost: 127.0.0.1:1\r\nX-Forwarded-For: 127.0.0.8\r\n\r\n",
		"POST http://evil.example/v2//metadata HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc",
		"OPTIONS * HTTP/1.1\r\nHost:\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
	} {
		f.Add([]byte(request))
	}
	cfg := newWorld().config()
	f.Fuzz(func(t *testing.T, request []byte) {
		r, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(request)))
		if err != nil {
			return
		}
		r.RemoteAddr = netip.AddrPortFrom(taskAddr, 4242).String()
		w := httptest.NewRecorder()
		New(cfg).ServeHTTP(w, r) // a new one: refusals by one server are spaced
		switch w.Code {
		case 200, 403, 404, 405:
		default:
			t.Fatalf("status %d", w.Code)
		}
		if r.Method != http.MethodHead && !json.Valid(w.Body.Bytes()) {
			t.Errorf("no JSON: %q", w.Body)
		}
		if strings.Contains(w.Body.String(), otherID) || strings.Contains(w.Body.String(), "not yours") {
			t.Errorf("another task's: %s", w.Body)
		}
		if w.Code == http.StatusOK && (len(r.Header["X-Forwarded-For"]) > 0 || len(r.Header["Forwarded"]) > 0) {
			t.Error("a forwarded request was answered")
		}
	})
}

// FuzzRemoteAddr looks for a text that is taken for a task's address and is not one.
func FuzzRemoteAddr(f *testing.F) {
	for _, remote := range []string{"127.0.0.7:1", "[::ffff:127.0.0.7]:1", "[::ffff:127.0.0.7%x]:1", "[fe80::1%eth0]:1", "@", ""} {
		f.Add(remote)
	}
	cfg := newWorld().config()
	f.Fuzz(func(t *testing.T, remote string) {
		w := ask(New(cfg), http.MethodGet, "/v2/metadata", from(remote))
		ap, err := netip.ParseAddrPort(remote)
		ours := err == nil && (ap.Addr() == taskAddr || ap.Addr() == otherAddr ||
			ap.Addr().Zone() == "" && ap.Addr().Is4In6() && (ap.Addr().Unmap() == taskAddr || ap.Addr().Unmap() == otherAddr))
		if want := map[bool]int{true: 200, false: 403}[ours]; w.Code != want {
			t.Errorf("%q: %d, want %d", remote, w.Code, want)
		}
	})
}
