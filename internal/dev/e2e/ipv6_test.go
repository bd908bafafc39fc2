package e2e

import (
	"net/http"
	"testing"
)

// A task without IPv4 asks the gateway of its IPv6 subnet.
func TestATaskOfIPv6Alone(t *testing.T) {
	h := newHost(t)
	const endpoint = "[fd00:ec2::172:1]:80"
	h.serve(t, "--listen", endpoint, "--listen", "169.254.170.2:80")
	six, four := h.task(t, "six"), h.task(t, "four")
	six.keys = map[string]any{"ipv6-subnet": "fd00:ec2::172:0/112"}
	if address := six.attach(t); address != "fd00:ec2::172:2" {
		t.Errorf("the task was given %s", address)
	}
	four.attach(t)

	ask := func(k *task, url string) (got taskReply) {
		out, err := h.docker.CLI("exec", k.pause, "/probe", "GET", url)
		if err != nil {
			t.Fatal(err)
		}
		r, err := readReply("GET", out)
		if err != nil {
			t.Fatal(err)
		}
		r.decode(t, &got)
		return got
	}
	got := ask(six, "http://"+endpoint+"/v2/metadata")
	if got.TaskARN != six.arn || len(got.Containers) != 1 {
		t.Fatalf("it is told %+v", got)
	}
	networks := got.Containers[0].Networks
	if len(networks) != 1 || len(networks[0].IPv4Addresses) != 0 || len(networks[0].IPv6Addresses) != 1 || networks[0].IPv6Addresses[0] != "fd00:ec2::172:2" {
		t.Errorf("its networks are %+v", networks)
	}
	if got := ask(four, url("/v2/metadata")); got.TaskARN != four.arn {
		t.Errorf("a task of IPv4 is told %+v", got)
	}
	h.mustSay(t, http.StatusOK, "")
}
