package testnet

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/netip"
	"time"
)

// askTime bounds a request and its answer. No answer of the resolver takes that long.
const askTime = 10 * time.Second

// Transport makes connections from inside the namespace, with the dialer's options.
func (n *Namespace) Transport(by net.Dialer) *http.Transport {
	return &http.Transport{DialContext: func(ctx context.Context, network, address string) (c net.Conn, err error) {
		err = n.Do(func() error {
			c, err = by.DialContext(ctx, network, address)
			return err
		})
		return c, err
	}}
}

// From makes connections from a local address. The zero address is any.
func From(addr netip.Addr) (by net.Dialer) {
	if addr.IsValid() {
		by.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(addr, 0))
	}
	return by
}

// Ask sends a GET request from inside the namespace, on a connection of its own.
func (n *Namespace) Ask(ctx context.Context, url string) (status int, body string, err error) {
	return n.AskBy(ctx, net.Dialer{}, url)
}

// AskBy is Ask on a connection that the dialer makes.
func (n *Namespace) AskBy(ctx context.Context, by net.Dialer, url string) (status int, body string, err error) {
	transport := n.Transport(by)
	transport.DisableKeepAlives = true
	return Get(ctx, transport, url)
}

// Get sends a GET request and reads the whole answer.
func Get(ctx context.Context, by http.RoundTripper, url string) (status int, body string, err error) {
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0, "", err
	}
	resp, err := by.RoundTrip(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(text), err
}
