package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	"go.etcd.io/bbolt"

	"taskmeta/internal/bindingdb"
	"taskmeta/internal/bootclock"
	"taskmeta/internal/cniedge"
	"taskmeta/internal/dev/testnet"
	"taskmeta/internal/ecs"
)

// refused calls the plugin, which has to answer with an error of that code and text.
func (h host) refused(t testing.TB, verb, container, conf string, code uint, text string) {
	t.Helper()
	_, err := h.call(verb, container, conf)
	testnet.Refused(t, err, code, text)
}

// fill binds that many attachments as ADDs would, in one process.
func (h host) fill(t testing.TB, n int, options bindingdb.Options) {
	t.Helper()
	pool, err := ecs.NewPool(netip.MustParsePrefix("169.254.172.0/22"), netip.Addr{})
	if err != nil {
		t.Fatal(err)
	}
	options.Create = true
	s, err := bindingdb.Open(t.Context(), h.db, options)
	if err != nil {
		t.Fatal(err)
	}
	for i := range n {
		a := ecs.Attachment{Network: "ecs-task", Container: fmt.Sprintf("c%d", i), IfName: "eth0"}
		if _, err := s.Acquire(ecs.Binding{Attachment: a, Created: time.Now(), Since: bootclock.Now()}, bindingdb.Want{Pool: pool}); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

// 1021 attachments fit. The next is told so, with the counts, and what a DEL frees can be
// had at once.
func TestLastAddress(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.fill(t, 1020, bindingdb.Options{})
	add := func(container string) string {
		t.Helper()
		result, err := h.call("ADD", container, plainConf)
		if err != nil {
			t.Fatal(err)
		}
		return result.IPs[0].Address.String()
	}
	if got := add("last"); got != "169.254.175.254/22" {
		t.Errorf("the last address is %s", got)
	}
	const full = "of 1021 addresses 1021 are held"
	h.refused(t, "ADD", "one-more", plainConf, cniedge.CodePoolFull, full)
	h.refused(t, "STATUS", "", plainConf, types.ErrPluginNotAvailable, full)
	if _, err := h.call("DEL", "c500", plainConf); err != nil {
		t.Fatal(err)
	}
	if got := add("one-more"); got != "169.254.173.246/22" {
		t.Errorf("the one that was freed is 169.254.173.246, given was %s", got)
	}
	h.refused(t, "ADD", "two-more", plainConf, cniedge.CodePoolFull, full)
	if n := len(h.bindings(t)); n != 1021 {
		t.Errorf("%d bindings", n)
	}
	if _, err := h.call("GC", "", strings.TrimSuffix(plainConf, "}")+`, "cni.dev/valid-attachments": []}`); err != nil {
		t.Fatal(err)
	}
	if left := h.bindings(t); len(left) != 0 {
		t.Errorf("%d are left", len(left))
	}
	add("first-again")
}

// A file that another holds for longer than the plugin may wait: try again later.
func TestFileInUse(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.fill(t, 1, bindingdb.Options{})
	held, err := bindingdb.Lock(context.Background(), h.db+".lock", true)
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	for _, verb := range []string{"ADD", "DEL", "GC", "CHECK"} {
		cmd := h.command(verb, "c1", strings.TrimSuffix(plainConf, "}")+`, "cni.dev/valid-attachments": [],
			"prevResult": {"cniVersion": "1.1.0", "ips": [{"address": "169.254.172.2/22"}]}}`)
		cmd.Env = append(cmd.Env, "IPAM_DB_CONNECTION_TIMEOUT=20ms")
		_, err := testnet.Answer(nil, cmd)
		var failure *types.Error
		if !errors.As(err, &failure) || failure.Code != types.ErrTryAgainLater || !strings.Contains(failure.Details, fmt.Sprintf("process %d)", os.Getpid())) {
			t.Errorf("%s: %v", verb, err)
		}
	}
}

// The first verb of a boot drops what another boot has left, and says so once.
func TestFirstVerbAfterABoot(t *testing.T) {
	t.Parallel()
	for _, verb := range []string{"ADD", "DEL", "GC", "STATUS"} {
		h := newHost(t)
		h.fill(t, 3, bindingdb.Options{BootID: "11111111-1111-1111-1111-111111111111"})
		says := func(verb string) string {
			cmd := h.command(verb, "new", strings.TrimSuffix(plainConf, "}")+`, "cni.dev/valid-attachments": []}`)
			var log bytes.Buffer
			cmd.Stderr = &log
			if err := cmd.Run(); err != nil {
				t.Errorf("%s: %v", verb, err)
			}
			return log.String()
		}
		if got := says(verb); strings.Count(got, "\n") != 1 || !strings.Contains(got, "dropped the bindings of an earlier boot") || !strings.Contains(got, "bindings=3") {
			t.Errorf("%s says %q", verb, got)
		}
		if got := says("STATUS"); got != "" {
			t.Errorf("STATUS after %s says %q", verb, got)
		}
		for _, b := range h.bindings(t) {
			if b.Container != "new" {
				t.Errorf("%s: %v is left", verb, b.Attachment)
			}
		}
	}
}

// A file that AWS's plugin wrote, as `db-path`: what it gave is given to nobody else, and
// freed by its ID, or by its address if that is all there is.
func TestFileOfAWSsPlugin(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	path := filepath.Join(t.TempDir(), "eni-ipam.db")
	db, err := bbolt.Open(path, 0o644, nil)
	if err != nil {
		t.Fatal(err)
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		bucket, err := tx.CreateBucketIfNotExists([]byte("IPAM"))
		if err != nil {
			return err
		}
		for i, entry := range []string{"169.254.172.1 GateWay", "169.254.172.2 pause1", "169.254.172.3 ", "169.254.172.4 pause2", "lastKnownIP 169.254.172.2"} {
			key, id, _ := strings.Cut(entry, " ")
			if err := bucket.Put([]byte(key), append(binary.LittleEndian.AppendUint64(nil, uint64(i)), id...)); err != nil {
				return err
			}
		}
		return nil
	})
	if err := errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
	h.db = path // for bindings
	conf := func(more string) string {
		return `{"cniVersion": "0.3.0", "name": "ecs-task", "ipam": {"type": "ecs-ipam", "db-path": "` + path + `", "ipv4-subnet": "169.254.172.0/22"` + more + `}}`
	}
	for i, want := range []string{"169.254.172.5/22", "169.254.172.6/22"} {
		result, err := h.call("ADD", fmt.Sprintf("c%d", i), conf(""))
		if err != nil {
			t.Fatal(err)
		}
		if got := result.IPs[0].Address.String(); got != want {
			t.Errorf("ADD got %s, want %s", got, want)
		}
	}
	h.refused(t, "ADD", "c9", conf(`, "ipv4-address": "169.254.172.4/22"`), cniedge.CodeAddrTaken, `169.254.172.4 is held by "pause2", as recorded by the AWS plugin`)
	h.refused(t, "ADD", "c9", conf(`, "id": "x", "ipv4-address": "169.254.172.3/22"`), cniedge.CodeAddrTaken, "169.254.172.3 is held by")
	for _, more := range []string{
		`, "id": "pause1"`, `, "ipv4-address": "169.254.172.3/22"`,
		// A runtime cleans up after the ADDs above, which failed.
		`, "ipv4-address": "169.254.172.4/22"`, `, "id": "x", "ipv4-address": "169.254.172.4/22"`,
	} {
		if _, err := h.call("DEL", "whoever", conf(more)); err != nil {
			t.Fatal(err)
		}
	}
	left := make(map[string]string)
	for _, b := range h.bindings(t) {
		left[b.Addrs[0].Addr().String()] = b.Owner()
	}
	want := map[string]string{"169.254.172.4": "pause2", "169.254.172.5": "c0", "169.254.172.6": "c1"}
	if fmt.Sprint(left) != fmt.Sprint(want) {
		t.Errorf("left: %v, want %v", left, want)
	}
}

// What the ECS agent asks of its plugins before it uses them, and where it has them log.
func TestAsTheECSAgentCallsIt(t *testing.T) {
	t.Parallel()
	for word, want := range map[string]string{
		"--version":      `{"version":"unknown","dirty":false,"gitShortHash":"unknown"}`,
		"--capabilities": `{"capabilities":["awsvpc-network-mode"]}`,
	} {
		out, err := exec.Command(filepath.Join(bin, "ecs-ipam"), word).Output()
		if err != nil || strings.TrimSpace(string(out)) != want {
			t.Errorf("%s: %s, %v", word, out, err)
		}
	}
	for _, test := range []struct {
		level string
		lines int
	}{{"", 1}, {"debug", 1}, {"error", 0}, {"crit", 0}, {"nonsense", 2}} {
		h := newHost(t)
		logs := filepath.Join(t.TempDir(), "plugin.log")
		cmd := h.command("GC", "", plainConf) // warns of the missing list
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		cmd.Env = append(cmd.Env, "ECS_CNI_LOG_FILE="+logs, "ECS_CNI_LOGLEVEL="+test.level)
		if err := cmd.Run(); err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(logs); err != nil || bytes.Count(got, []byte("\n")) != test.lines || stderr.Len() != 0 {
			t.Errorf("level %q: %q, %v, and on standard error %q", test.level, got, err, stderr.Bytes())
		}
	}
	h := newHost(t)
	cmd := h.command("ADD", "c1", plainConf)
	cmd.Env = append(cmd.Env, "ECS_CNI_LOG_FILE=/nowhere/plugin.log")
	out, err := cmd.Output()
	var result map[string]any
	if err != nil || json.Unmarshal(out, &result) != nil {
		t.Errorf("with a log that can't be written: %s, %v", out, err)
	}
}
