package admin_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"flag"
	"fmt"
	"image"
	"image/color"
	"image/png"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "write docs/status-page.png anew")

func TestPageInABrowser(t *testing.T) {
	t.Parallel()
	browser := findChromium(t)
	for _, tasks := range []int{0, 3, poolSize} {
		t.Run(fmt.Sprintf("%d tasks", tasks), func(t *testing.T) {
			t.Parallel()
			page := parse(t, bytes.NewReader(browser.dump(t, serve(t, newServer(tasks).Handler()))))
			if n := len(page.cells()); n != poolSize+3 {
				t.Errorf("%d addresses are drawn, want %d", n, poolSize+3)
			}
			if n := len(page.elements("article")); n != tasks {
				t.Errorf("%d tasks are listed, want %d", n, tasks)
			}
		})
	}
}

// The colours of an address in use.
var (
	lightBlue = color.RGBA{0x24, 0x59, 0xc9, 0xff}
	darkBlue  = color.RGBA{0x6e, 0xa0, 0xff, 0xff}
)

// A page that is no wider than 320 pixels needs no scrolling sideways on any phone (WCAG
// 2.1, criterion 1.4.10).
func TestPageOnAPhone(t *testing.T) {
	t.Parallel()
	const script = `const tell = () => fetch("/?width=" + document.documentElement.scrollWidth + " of " + innerWidth);
		tell(); addEventListener("resize", tell);`
	const dark = "--blink-settings=preferredColorScheme=0"
	tests := map[string]struct {
		tasks, width int
		flags        []string
		inUse        color.RGBA
	}{
		"no task":           {tasks: 0, width: 390, inUse: lightBlue},
		"three tasks, dark": {tasks: 3, width: 390, inUse: darkBlue, flags: []string{dark}},
		"a full pool":       {tasks: poolSize, width: 320, inUse: lightBlue},
		"a full pool, dark": {tasks: poolSize, width: 390, inUse: darkBlue, flags: []string{dark}},
	}
	browser := findChromium(t)
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			page := withScript(newServer(test.tasks).Handler(), script)
			var width atomic.Value // as the page has told last
			url := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if told := r.URL.Query().Get("width"); told != "" {
					width.Store(told)
					return
				}
				page.ServeHTTP(w, r)
			}))
			picture := browser.screenshot(t, url, test.width, 1600, test.flags...)
			if want := fmt.Sprintf("%d of %[1]d", test.width); width.Load() != want {
				t.Errorf("the page is %v pixels wide, want %s", width.Load(), want)
			}
			// A cell is 7 by 7 pixels or more, and a tenth of the tasks have gone.
			if n, want := count(picture, test.inUse), test.tasks*49*8/10; n < want {
				t.Errorf("%d pixels have the colour of addresses in use, want %d or more", n, want)
			}
		})
	}
}

func TestPageNeedsNoScript(t *testing.T) {
	t.Parallel()
	var scripted atomic.Bool
	handler := newServer(poolSize).Handler()
	url := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.RawQuery != "" {
			scripted.Store(true)
		}
		// No script runs in a sandbox. Switched off by a setting they would be missed by
		// Chromium itself, which takes its pictures by one.
		w.Header().Add("Content-Security-Policy", "sandbox")
		page := httptest.NewRecorder()
		handler.ServeHTTP(page, r)
		w.Header().Add("Content-Security-Policy", page.Header().Get("Content-Security-Policy"))
		w.Header().Set("Content-Type", page.Header().Get("Content-Type"))
		_, _ = w.Write(page.Body.Bytes())
	}))
	picture := findChromium(t).screenshot(t, url, 390, 1600)
	if scripted.Load() {
		t.Fatal("the page's script ran")
	}
	if n, want := count(picture, lightBlue), poolSize*49*8/10; n < want {
		t.Errorf("%d pixels have the colour of addresses in use, want %d or more", n, want)
	}
}

func TestPageFollowsWhatHappens(t *testing.T) {
	t.Parallel()
	before, after := newServer(3), newServer(5)
	after.Requests.Observe("metadata", 200, time.Millisecond)
	var loaded atomic.Bool
	url := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		server := before
		if loaded.Swap(true) {
			server = after
		}
		server.Handler().ServeHTTP(w, r)
	}))
	page := parse(t, bytes.NewReader(findChromium(t).dump(t, url)))
	if n := len(page.elements("article")); n != 5 {
		t.Errorf("%d tasks are listed, want 5: two came after the page was loaded", n)
	}
	if text := page.text(); !strings.Contains(text, "Tasks 5 1 gone") || !strings.Contains(text, "1 since the start") {
		t.Errorf("the figures are those of before:\n%s", text)
	}
}

func TestPageSaysThatTheResolverIsGone(t *testing.T) {
	t.Parallel()
	server := newServer(3).Handler()
	url := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.RawQuery != "" {
			panic(http.ErrAbortHandler)
		}
		server.ServeHTTP(w, r)
	}))
	for _, p := range parse(t, bytes.NewReader(findChromium(t).dump(t, url))).elements("p") {
		if attr(p, "role") == "alert" {
			for _, a := range p.Attr {
				if a.Key == "hidden" {
					t.Error("the alert is hidden")
				}
			}
		}
	}
}

func TestPictureInTheDocs(t *testing.T) {
	if !*update {
		t.Skip("only with -update")
	}
	server := newServer(60)
	url := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { server.Handler().ServeHTTP(w, r) }))
	for second := range 60 {
		for range 4 + second*7%11 {
			server.Requests.Observe("metadata", 200, time.Millisecond)
		}
		if second%9 == 0 {
			server.Requests.Observe("none", 404, time.Millisecond)
		}
		time.Sleep(time.Second)
	}
	var out bytes.Buffer
	encoder := png.Encoder{CompressionLevel: png.BestCompression}
	if err := encoder.Encode(&out, findChromium(t).screenshot(t, url, 1200, 1000)); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile("../../docs/status-page.png", out.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
}

// withScript adds a script to the page, and to what its policy lets run.
func withScript(h http.Handler, script string) http.Handler {
	sum := sha256.Sum256([]byte(script))
	source := "script-src 'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "' "
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		answer := httptest.NewRecorder()
		h.ServeHTTP(answer, r)
		for key, values := range answer.Header() {
			for _, v := range values {
				w.Header().Add(key, strings.Replace(v, "script-src ", source, 1))
			}
		}
		page := strings.Replace(answer.Body.String(), "</body>", "<script>"+script+"</script></body>", 1)
		_, _ = w.Write([]byte(page))
	})
}

func serve(t testing.TB, h http.Handler) (url string) {
	t.Helper()
	server := httptest.NewServer(h)
	t.Cleanup(server.Close)
	return server.URL + "/"
}

// count counts the pixels of a colour.
func count(picture image.Image, of color.RGBA) (n int) {
	for y := picture.Bounds().Min.Y; y < picture.Bounds().Max.Y; y++ {
		for x := picture.Bounds().Min.X; x < picture.Bounds().Max.X; x++ {
			if color.RGBAModel.Convert(picture.At(x, y)) == of {
				n++
			}
		}
	}
	return n
}

// A chromium is the path of the browser's program.
type chromium string

// atOnce is how many browsers run at a time: each takes 200 MB and two processors.
var atOnce = make(chan struct{}, 2)

func findChromium(t testing.TB) chromium {
	t.Helper()
	if testing.Short() {
		t.Skip("starts a browser")
	}
	path, err := exec.LookPath("chromium")
	if err != nil {
		t.Fatal(err, "; install the Debian package chromium, or run go test -short")
	}
	return chromium(path)
}

// dump returns the document as it stands five seconds (of the page's own clock) after it
// was loaded.
func (c chromium) dump(t testing.TB, url string, flags ...string) []byte {
	t.Helper()
	return c.run(t, append(flags, "--dump-dom", url)...)
}

func (c chromium) screenshot(t testing.TB, url string, width, height int, flags ...string) image.Image {
	t.Helper()
	file := filepath.Join(t.TempDir(), "page.png")
	c.run(t, append(flags, fmt.Sprintf("--window-size=%d,%d", width, height), "--screenshot="+file, url)...)
	picture, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer picture.Close()
	decoded, err := png.Decode(picture)
	if err != nil {
		t.Fatal(err)
	}
	return decoded
}

// run starts the browser without a screen, and away from the network but for url.
func (c chromium) run(t testing.TB, flags ...string) []byte {
	t.Helper()
	atOnce <- struct{}{}
	defer func() { <-atOnce }()
	home := t.TempDir()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, string(c), append([]string{
		"--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
		"--disable-background-networking", "--disable-component-update", "--disable-sync",
		"--virtual-time-budget=5000", "--user-data-dir=" + home,
	}, flags...)...)
	cmd.Env = append(os.Environ(), "HOME="+home)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // what outlived it would write on to home
	if err != nil {
		t.Fatalf("running %s: %v\n%s", strings.Join(cmd.Args, " "), err, &stderr)
	}
	return out
}
