package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"strconv"
	"sync"
	"time"

	"taskmeta/internal/dev/bench"
)

// askAll is `resolver load`: it asks an HTTP service over a number of connections at once,
// as fast as it answers or at a pace, and prints a tally as JSON. It writes one prebuilt
// request and reads no more of an answer than it must, since it shares the processors with
// what it measures.
func askAll(args []string) error {
	var l load
	f := flag.NewFlagSet("load", flag.ExitOnError)
	f.StringVar(&l.to, "to", "169.254.170.2:80", "`address` of the service")
	path := f.String("path", "/v2/metadata", "what is asked for")
	f.IntVar(&l.conns, "conns", 1, "connections that ask")
	f.IntVar(&l.held, "hold", 0, "further connections that are held open and ask nothing")
	f.BoolVar(&l.close, "close", false, "open a connection for each request")
	f.DurationVar(&l.pace, "pace", 0, "`time` between two requests of a connection; 0: none")
	lasts := f.Duration("for", time.Second, "how long it lasts")
	if err := f.Parse(args); err != nil {
		return err
	}
	l.request = "GET " + *path + " HTTP/1.1\r\nHost: 169.254.170.2\r\n"
	if l.close {
		l.request += "Connection: close\r\n"
	}
	l.request += "\r\n"
	return json.NewEncoder(os.Stdout).Encode(l.run(*lasts))
}

type load struct {
	to, request string
	conns, held int
	close       bool
	pace        time.Duration
}

// ioTime bounds the wait for one answer.
const ioTime = 20 * time.Second

func (l *load) run(lasts time.Duration) tally {
	for range l.held {
		// What is refused is tried no more: holding is all that this is about.
		if c, err := net.DialTimeout("tcp", l.to, ioTime); err == nil {
			defer c.Close()
		}
	}
	var ready, all sync.WaitGroup
	askers := make([]asker, l.conns)
	var start, end time.Time
	begin := make(chan struct{})
	ready.Add(l.conns)
	for i := range askers {
		askers[i] = asker{load: l, buf: make([]byte, 64<<10)}
		all.Go(func() {
			if !l.close {
				askers[i].dial()
			}
			ready.Done()
			<-begin
			askers[i].ask(end)
		})
	}
	ready.Wait()
	start = time.Now()
	end = start.Add(lasts)
	close(begin)
	all.Wait()
	took := time.Since(start)

	var t tally
	var latencies []time.Duration
	for i := range askers {
		a := &askers[i]
		t.OK += len(a.latencies)
		t.Refused += a.refused
		t.Failed += a.failed
		if a.err != nil {
			t.Failure = a.err.Error()
		}
		latencies = append(latencies, a.latencies...)
	}
	t.summarise(latencies, took)
	return t
}

// An asker is one connection, or one after the other.
type asker struct {
	*load
	conn            net.Conn
	buf             []byte
	latencies       []time.Duration // of answers with 200
	refused, failed int
	err             error
}

func (a *asker) ask(end time.Time) {
	next := time.Now()
	for {
		began := time.Now()
		if began.After(end) {
			return
		}
		ok, err := a.once()
		switch {
		case err != nil:
			a.failed++
			a.err = err
			a.hangUp()
		case ok:
			a.latencies = append(a.latencies, time.Since(began))
		default:
			a.refused++
		}
		if a.close {
			a.hangUp()
		}
		if a.pace > 0 {
			next = next.Add(a.pace)
			time.Sleep(time.Until(next))
		}
	}
}

func (a *asker) dial() {
	if a.conn == nil {
		a.conn, a.err = net.DialTimeout("tcp", a.to, ioTime)
	}
}

func (a *asker) hangUp() {
	if a.conn != nil {
		_ = a.conn.Close()
		a.conn = nil
	}
}

var errTooLong = errors.New("a header of more than 64 KiB")

// once sends one request and reads the answer; it reports whether that was a 200.
func (a *asker) once() (bool, error) {
	if a.dial(); a.conn == nil {
		return false, a.err
	}
	if err := a.conn.SetDeadline(time.Now().Add(ioTime)); err != nil {
		return false, err
	}
	if _, err := a.conn.Write([]byte(a.request)); err != nil {
		return false, err
	}
	for n := 0; ; {
		if n == len(a.buf) {
			return false, errTooLong
		}
		m, err := a.conn.Read(a.buf[n:])
		if err != nil {
			return false, err
		}
		n += m
		h, ok, err := parseHead(a.buf[:n])
		if err != nil {
			return false, err
		}
		if !ok {
			continue
		}
		for left := h.size - n; left > 0; {
			m, err := a.conn.Read(a.buf[:min(left, len(a.buf))])
			if err != nil {
				return false, err
			}
			left -= m
		}
		if h.close {
			a.hangUp()
		}
		return h.status == 200, nil
	}
}

// A tally is what came of a load.
type tally struct {
	OK, Refused, Failed int
	Failure             string // an example
	PerSecond           float64
	P50, P99            time.Duration // of the answers with 200
	processor           time.Duration // that the service took for each, as its host says
}

// summarise sets the figures of the answers with 200.
func (t *tally) summarise(latencies []time.Duration, took time.Duration) {
	if len(latencies) == 0 {
		return
	}
	t.PerSecond = float64(len(latencies)) / took.Seconds()
	t.P50, t.P99 = bench.Quantile(latencies, 0.5), bench.Quantile(latencies, 0.99)
}

// A head is what counts of an answer's header.
type head struct {
	status int
	size   int // of the whole answer, its header included
	close  bool
}

// parseHead reads the header of an answer that begins with text. It returns false as long
// as the header is not whole. The length must be given, as net/http's servers write it.
func parseHead(text []byte) (h head, whole bool, err error) {
	end := bytes.Index(text, []byte("\r\n\r\n"))
	if end < 0 {
		return h, false, nil
	}
	lines := text[:end+2]
	if len(lines) < 12 {
		return h, false, fmt.Errorf("%q is no status line", lines)
	}
	if h.status, err = strconv.Atoi(string(lines[9:12])); err != nil {
		return h, false, fmt.Errorf("%q is no status line: %w", lines, err)
	}
	length, err := strconv.Atoi(field(lines, "\r\nContent-Length: "))
	if err != nil {
		return h, false, fmt.Errorf("Content-Length of %q: %w", lines, err)
	}
	h.size = end + 4 + length
	h.close = field(lines, "\r\nConnection: ") == "close"
	return h, true, nil
}

// field is the rest of the line after name.
func field(lines []byte, name string) string {
	_, rest, ok := bytes.Cut(lines, []byte(name))
	if !ok {
		return ""
	}
	value, _, _ := bytes.Cut(rest, []byte("\r\n"))
	return string(value)
}
