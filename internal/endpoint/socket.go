package endpoint

import (
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// bindToDevice makes a listening socket take connections that come in by the interface of
// that name alone. It holds for the interface as it is: one that is made anew under the
// name needs a call of its own.
func bindToDevice(l net.Listener, name string) error {
	raw, err := l.(syscall.Conn).SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Control(func(fd uintptr) {
		failed = os.NewSyscallError("setsockopt SO_BINDTODEVICE", unix.BindToDevice(int(fd), name))
	})
	if err != nil {
		return err
	}
	return failed
}
