package bindingdb

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"os"
	"runtime/debug"
	"syscall"

	"taskmeta/internal/ecs"
)

// The layout of bbolt's two meta pages, which hold what a commit changes last: a page
// header of 16 bytes, then the meta itself in the byte order of the machine.
const (
	pageHeader = 16
	metaSize   = 64
	metaMagic  = 0xED0CDAED
	metaFormat = 2
)

type meta [metaSize]byte

func (m *meta) pageSize() int64  { return int64(binary.NativeEndian.Uint32(m[8:])) }
func (m *meta) pages() uint64    { return binary.NativeEndian.Uint64(m[40:]) } // high-water mark
func (m *meta) txid() uint64     { return binary.NativeEndian.Uint64(m[48:]) }
func (m *meta) checksum() uint64 { return binary.NativeEndian.Uint64(m[56:]) }

func (m *meta) valid() bool {
	sum := fnv.New64a()
	sum.Write(m[:56])
	return binary.NativeEndian.Uint32(m[0:]) == metaMagic &&
		binary.NativeEndian.Uint32(m[4:]) == metaFormat &&
		m.checksum() == sum.Sum64() && m.pageSize() >= 512 && m.pageSize() <= 1<<24
}

// An identity tells a file from another that has taken its name.
type identity struct {
	dev, ino uint64
	size     int64
}

func identify(info os.FileInfo) identity {
	st := info.Sys().(*syscall.Stat_t)
	return identity{dev: uint64(st.Dev), ino: st.Ino, size: st.Size}
}

// A state is what a bindings file was at one time. Two equal states have equal contents,
// since every commit writes a new transaction ID to one of the metas.
type state struct {
	identity
	pageSize int64
	metas    [2]meta
}

// torn reports whether one of the two metas is not valid. bbolt goes on with the other
// one, which may lack the last transaction.
func (s *state) torn() bool { return !s.metas[0].valid() || !s.metas[1].valid() }

// open opens the file at path, which must be the one whose state s is.
func (s *state) open(path string) (*os.File, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && identify(info) != s.identity {
		err = fmt.Errorf("%w: %s was replaced at this moment", ecs.ErrBusy, path)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// current reports whether the metas in the file are still those of s.
func (s *state) current(f *os.File) bool {
	var now [2]meta
	for i := range now {
		if _, err := f.ReadAt(now[i][:], int64(i)*s.pageSize+pageHeader); err != nil {
			return false
		}
	}
	return now == s.metas
}

// inspect reads the state of a bindings file and refuses, as [ecs.ErrDamaged], one that
// bbolt must not map: it would take a file without content for a new one, and a process
// that touches a mapping beyond the end of a file dies of SIGBUS.
func inspect(f *os.File) (state, error) {
	info, err := f.Stat()
	if err != nil {
		return state{}, err
	}
	s := state{identity: identify(info), pageSize: int64(os.Getpagesize())}
	if s.size == 0 {
		return state{}, damaged(f.Name(), "it is empty")
	}
	if _, err := f.ReadAt(s.metas[0][:], pageHeader); err != nil {
		return state{}, damaged(f.Name(), fmt.Sprintf("it ends within the first page, at %d bytes", s.size))
	}
	if s.metas[0].valid() {
		s.pageSize = s.metas[0].pageSize()
	}
	if _, err := f.ReadAt(s.metas[1][:], s.pageSize+pageHeader); err != nil {
		return state{}, damaged(f.Name(), fmt.Sprintf("it ends within the second page, at %d bytes", s.size))
	}
	newest := s.metas[0]
	if !newest.valid() || s.metas[1].valid() && s.metas[1].txid() > newest.txid() {
		newest = s.metas[1]
	}
	if !newest.valid() {
		return state{}, damaged(f.Name(), "neither of its first two pages is a valid meta page")
	}
	if need := newest.pages() * uint64(s.pageSize); uint64(s.size) < need {
		return state{}, damaged(f.Name(), fmt.Sprintf("it has %d bytes of %d", s.size, need))
	}
	return s, nil
}

// damaged is [ecs.ErrDamaged] with what is wrong and the way out. The file is never made
// anew by itself: the tasks that live would lose their addresses to others.
func damaged(path, what string) error {
	return fmt.Errorf("%w: %s: %s; run `ecs-resolver bindings repair`, or remove the file once no task has an address of it", ecs.ErrDamaged, path, what)
}

// catchDamage runs do, which reads the mapped file at path. When bbolt meets a damaged page,
// it panics or faults: catchDamage returns that as [ecs.ErrDamaged], with the text of the
// panic. Any other panic of do counts as damage as well.
func catchDamage(path string, do func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if v := recover(); v != nil {
			err = damaged(path, fmt.Sprint(v))
		}
	}()
	return do()
}

// BootID returns the kernel's ID of this boot.
func BootID() (string, error) {
	const path = "/proc/sys/kernel/random/boot_id"
	id, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("reading the boot ID: %w", err)
	}
	if len(id) < 2 {
		return "", errors.New(path + " is empty")
	}
	return string(id[:len(id)-1]), nil
}
