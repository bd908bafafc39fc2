package main

import (
	"bufio"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"strconv"
	"strings"
)

// listening is the state of a listening socket in /proc/net/tcp (TCP_LISTEN).
const listening = "0A"

// listeners are the addresses at which TCP sockets of this network namespace listen.
func listeners() ([]netip.AddrPort, error) {
	var all []netip.AddrPort
	for _, path := range []string{"/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6"} {
		file, err := os.Open(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue // a kernel without IPv6
		}
		if err != nil {
			return nil, err
		}
		lines := bufio.NewScanner(file)
		lines.Scan() // the heading
		for lines.Scan() {
			field := strings.Fields(lines.Text())
			if len(field) < 4 || field[3] != listening {
				continue
			}
			at, err := parseHex(field[1])
			if err != nil {
				_ = file.Close()
				return nil, fmt.Errorf("%s: %w", path, err)
			}
			all = append(all, at)
		}
		if err := errors.Join(lines.Err(), file.Close()); err != nil {
			return nil, fmt.Errorf("reading %s: %w", path, err)
		}
	}
	return all, nil
}

// parseHex reads an address as /proc/net/tcp has it: words of 32 bits in the order of the
// machine's bytes, a colon, and the port.
func parseHex(text string) (netip.AddrPort, error) {
	words, number, _ := strings.Cut(text, ":")
	raw, err := hex.DecodeString(words)
	if err == nil && len(raw)%4 == 0 {
		for i := 0; i < len(raw); i += 4 {
			binary.NativeEndian.PutUint32(raw[i:], binary.BigEndian.Uint32(raw[i:]))
		}
	}
	addr, ok := netip.AddrFromSlice(raw)
	port, e := strconv.ParseUint(number, 16, 16)
	if err != nil || !ok || e != nil {
		return netip.AddrPort{}, fmt.Errorf("the address %q is not as the kernel writes it", text)
	}
	return netip.AddrPortFrom(addr, uint16(port)), nil
}
