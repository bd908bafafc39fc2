package guard

import (
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"taskmeta/internal/dev/testnet"
)

// A process is held by the guard unless it can come by power over the host's network.
func TestCanChangeHostNetwork(t *testing.T) {
	testnet.Need(t)
	t.Parallel()
	mapped := &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
	}
	tests := map[string]struct {
		words string
		attr  *syscall.SysProcAttr
		want  bool
	}{
		"root":                       {words: "cat", want: true},
		"without the capabilities":   {words: "setpriv --bounding-set -net_admin,-sys_admin cat"},
		"with one of them":           {words: "setpriv --bounding-set -sys_admin cat", want: true},
		"in a user namespace":        {words: "cat", attr: mapped},
		"somebody who may be root":   {words: "setpriv --reuid 65534 --clear-groups cat", want: true},
		"somebody who may not be it": {words: "setpriv --reuid 65534 --clear-groups --bounding-set -all cat"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			args := strings.Fields(test.words)
			cmd := exec.Command(args[0], args[1:]...)
			cmd.SysProcAttr = test.attr
			in, err := cmd.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			defer cmd.Wait()
			defer in.Close()
			if _, err := in.Write([]byte("x")); err != nil { // cat answers once it is what it is to be
				t.Fatal(err)
			}
			if _, err := out.Read(make([]byte, 1)); err != nil {
				t.Fatal(err)
			}
			if got := CanChangeHostNetwork(cmd.Process.Pid); got != test.want {
				t.Errorf("can change the host's network: %t, want %t", got, test.want)
			}
		})
	}
	if CanChangeHostNetwork(1 << 30) {
		t.Error("a process that is not there can")
	}
}
