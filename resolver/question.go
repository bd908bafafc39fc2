package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"taskmeta/internal/admin"
	"taskmeta/internal/attach"
	"taskmeta/internal/ecs"
	"taskmeta/internal/guard"
	"taskmeta/internal/link"
	"taskmeta/internal/netns"
)

// questionTime bounds the real question of status: attaching the namespace that asks, and
// the answer. A lost packet is sent again after one second and after three.
const questionTime = 5 * time.Second

// A question is one that status asks the endpoint as a task does.
type question struct {
	attacher *attach.Attacher
	host     *link.Host // where the bridge stands
	bridge   string
	resolver *admin.Status // what the resolver says of itself
}

// ask asks it, and says how long the answer took.
func (q question) ask(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, questionTime)
	defer cancel()
	var took time.Duration
	err := q.attacher.Probe(ctx, func(ctx context.Context, ns *netns.NS) error {
		start := time.Now()
		instance, err := askEndpoint(ctx, ns)
		took = time.Since(start)
		switch {
		case err != nil:
			return q.explain(err)
		case instance != q.resolver.Instance:
			return fmt.Errorf("%s is answered, but not by the resolver that was asked above: is another one running, or one of an earlier version? End it", ecs.EndpointAddr)
		}
		return nil
	})
	return fmt.Sprintf("a task is answered (asked from a network namespace of its own, %s)", took.Round(100*time.Microsecond)), err
}

// An answer of the endpoint, as far as a question needs it.
type answer struct{ Instance, Code, Message string }

// askEndpoint asks the endpoint from a network namespace, and returns which resolver has
// answered.
func askEndpoint(ctx context.Context, ns *netns.NS) (instance string, err error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("http://%s:%d/v2/metadata", ecs.EndpointAddr, ecs.EndpointPort), nil)
	if err != nil {
		return "", err
	}
	client := http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, network, at string) (c net.Conn, err error) {
			err = ns.Do(func() (err error) {
				c, err = new(net.Dialer).DialContext(ctx, network, at)
				return err
			})
			return c, err
		},
		DisableKeepAlives: true,
	}}
	reply, err := client.Do(request)
	if err != nil {
		return "", errNoAnswer{err}
	}
	defer reply.Body.Close()
	var a answer
	switch err := json.NewDecoder(io.LimitReader(reply.Body, 1<<16)).Decode(&a); {
	case err != nil:
		return "", fmt.Errorf("%s answers with %s and no JSON of the resolver's: another program is there", ecs.EndpointAddr, reply.Status)
	case a.Code != "":
		return "", fmt.Errorf("%s answers with %s: %s", ecs.EndpointAddr, a.Code, a.Message)
	}
	return a.Instance, nil
}

// errNoAnswer is of a question that got no answer at all.
type errNoAnswer struct{ error }

func (e errNoAnswer) Unwrap() error { return e.error }

// explain says what may keep an answer from a task. Nothing of the host's is in the way where
// the endpoint has a network namespace of its own.
func (q question) explain(err error) error {
	if !errors.As(err, new(errNoAnswer)) {
		return err
	}
	what := "no answer came"
	if !errors.Is(err, context.DeadlineExceeded) {
		what = errors.Unwrap(errors.Unwrap(err)).Error()
	}
	if !onHosts(q.host.NS) {
		return fmt.Errorf("a task gets no answer: %s; somebody has changed the endpoint's network namespace: `nsenter --net=%s nft list ruleset`", what, q.host.NS.Path())
	}
	return fmt.Errorf("a task gets no answer: %s; likely a firewall of this host is in the way%s: let both ways pass, first and without a state (`iptables -I INPUT -i %s -d %s -p tcp --dport %d -j ACCEPT`, `iptables -I OUTPUT -o %[3]s -s %[4]s -p tcp --sport %[5]d -j ACCEPT`), or take the endpoint off the host: leave --netns out",
		what, q.firewalls(), q.bridge, ecs.EndpointAddr, ecs.EndpointPort)
}

// firewalls names what of the host may have dropped the question, in parentheses.
func (q question) firewalls() string {
	names, err := guard.Filters(q.host.Conn)
	if err != nil {
		names = []string{err.Error()}
	}
	// iptables-legacy says which of its tables are there.
	if legacy, err := os.ReadFile("/proc/self/net/ip_tables_names"); err == nil {
		for table := range strings.Lines(string(legacy)) {
			names = append(names, "iptables-legacy, table "+strings.TrimSpace(table))
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		names = append(names, err.Error())
	}
	if len(names) == 0 {
		return ""
	}
	return " (" + strings.Join(names, "; ") + ")"
}
