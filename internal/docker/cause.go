package docker

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/client"
)

// causeTimeout bounds the search for a cause, which begins when a call has failed already.
const causeTimeout = 2 * time.Second

// cause finds out why a call that failed had no daemon to answer it, and says what to do;
// nil if the error itself tells the most. Docker's client gives one text for most causes, so
// the daemon's address is tried once more.
func (c *Client) cause(err error) error {
	if !client.IsErrConnectionFailed(err) && !errdefs.IsInvalidArgument(err) {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), causeTimeout)
	defer cancel()
	cli := c.cli.Load()
	switch network, addr, _ := strings.Cut(cli.DaemonHost(), "://"); network {
	case "unix":
		return socketCause(ctx, addr)
	case "tcp":
		conn, err := cli.Dialer()(ctx)
		if err != nil {
			return fmt.Errorf("%w: start it, or name another with --docker-host", err)
		}
		defer conn.Close()
		return tlsCause(ctx, conn, addr)
	}
	return nil
}

// explain is the cause of an error, or the error.
func (c *Client) explain(err error) error {
	if cause := c.cause(err); cause != nil {
		return cause
	}
	return err
}

// socketCause says why a unix socket cannot be connected to, nil if it can.
func socketCause(ctx context.Context, path string) error {
	conn, err := new(net.Dialer).DialContext(ctx, "unix", path)
	if err == nil {
		return conn.Close()
	}
	info, statErr := os.Stat(path)
	switch {
	case errors.Is(err, syscall.EACCES):
		whose := ""
		if st, ok := sysOf(info); ok {
			whose = fmt.Sprintf(" (user %d, group %d, mode %04o)", st.Uid, st.Gid, info.Mode().Perm())
		}
		return fmt.Errorf("%w on %s%s: restart the resolver as root, with CAP_DAC_OVERRIDE in its bounding set, while the socket is there; or let its user or group open it", syscall.EACCES, path, whose)
	case statErr == nil && info.Mode().Type() != os.ModeSocket:
		return fmt.Errorf("%s is no socket: name the daemon's with --docker-host", path)
	case errors.Is(err, syscall.ENOENT), errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("nothing answers at unix://%s: start it, or name another with --docker-host: %w", path, errno(err))
	}
	return err
}

// errno is the kernel's error alone.
func errno(err error) error {
	if e, ok := errors.AsType[syscall.Errno](err); ok {
		return e
	}
	return err
}

func sysOf(info os.FileInfo) (*syscall.Stat_t, bool) {
	if info == nil {
		return nil, false
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	return st, ok
}

// tlsCause says that a daemon which was asked in plain text wants TLS, nil if it does not. A
// certificate is not looked at: that there is one says enough.
func tlsCause(ctx context.Context, conn net.Conn, addr string) error {
	if _, ok := conn.(*tls.Conn); ok {
		return nil // it was asked with TLS
	}
	if err := tls.Client(conn, &tls.Config{InsecureSkipVerify: true}).HandshakeContext(ctx); err != nil && !errors.As(err, new(tls.AlertError)) {
		return nil
	}
	return fmt.Errorf("the daemon at tcp://%s wants TLS: set DOCKER_TLS_VERIFY=1, and DOCKER_CERT_PATH to the folder of its certificates", addr)
}
