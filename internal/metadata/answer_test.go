package metadata

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"testing"
)

// Answers of all lengths about the size of net/http's buffer, one after the other on a
// connection, and with HEAD between: each is whole, and none waits for the next.
func TestLongAnswersAreWhole(t *testing.T) {
	t.Parallel()
	w := newWorld()
	c := dial(t, taskAddr, serve(t, New(w.config()).HTTPServer()))
	in := bufio.NewReader(c)
	sizes := []int{2, 2047, 2048, 2049, 64 << 10, 2, 8192, 8193, 12000}
	for size := 3800; size < 4200; size++ { // with a header of some 120 bytes
		sizes = append(sizes, size)
	}
	for _, size := range sizes {
		body := bytes.Repeat([]byte("0123456789"), size/10+1)[:size]
		w.Lock()
		w.stats[appID] = json.RawMessage(body)
		w.Unlock()
		for _, method := range []string{http.MethodHead, http.MethodGet} {
			if _, err := fmt.Fprintf(c, "%s /v2/stats/%s HTTP/1.1\r\nHost: 169.254.170.2\r\n\r\n", method, appID); err != nil {
				t.Fatal(err)
			}
			resp, err := http.ReadResponse(in, &http.Request{Method: method})
			if err != nil {
				t.Fatalf("%s of %d bytes: %v", method, size, err)
			}
			got, err := io.ReadAll(resp.Body)
			if err != nil || resp.ContentLength != int64(size) || method == http.MethodGet && !bytes.Equal(got, body) {
				t.Fatalf("%s of %d bytes: Content-Length %d and %d bytes, %v", method, size, resp.ContentLength, len(got), err)
			}
		}
	}
}

// A long answer is one write to the connection.
func TestLongAnswerIsOneWrite(t *testing.T) {
	t.Parallel()
	var c wire
	c.expect(5000)
	head := bytes.Repeat([]byte("h"), writeBuffer)
	if n, err := c.Write(head); n != len(head) || err != nil {
		t.Errorf("the first write is not kept: %d, %v", n, err)
	}
	clear(head) // net/http's buffer goes on to hold other things
	if want := bytes.Repeat([]byte("h"), writeBuffer); !bytes.Equal(c.kept, want) {
		t.Error("what is kept is not what was written")
	}
	var none *wire
	none.expect(5000) // under another listener
}
