package bindingdb

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// A bootMark is a line in the lock file that says in which boot the bindings file was last
// written. It is synced to the disk before the first commit of a boot, so that no commit has
// to be. A process that dies loses no commit, because the kernel has it. A loss of power may
// lose some, but ends the boot: the file is then of an earlier boot and gets replaced.
//
// This pays off on a disk only (a tmpfs such as /run has nothing to sync): an ADD and a DEL
// take 5 ms together, and 9 to 20 ms with syncs (BenchmarkAcquireRelease, ext4).
type bootMark struct {
	boot string
	ino  uint64 // the bindings file's
}

// readBootMark returns the mark of a lock file, the zero one if it has none.
func readBootMark(lock *os.File) bootMark {
	text := make([]byte, 128)
	n, _ := lock.ReadAt(text, 0) // a mark that is missing or cut off is none
	var m bootMark
	if line, _, whole := strings.Cut(string(text[:n]), "\n"); whole {
		if _, err := fmt.Sscanf(line, "%s %d", &m.boot, &m.ino); err != nil {
			return bootMark{}
		}
	}
	return m
}

// write puts the mark into the lock file, and onto the disk.
func (m bootMark) write(lock *os.File) error {
	_, err := lock.WriteAt(fmt.Appendf(nil, "%s %020d\n", m.boot, m.ino), 0)
	if err = errors.Join(err, lock.Sync()); err != nil {
		return fmt.Errorf("marking the bindings file as this boot's: %w", err)
	}
	return nil
}

// outlived reports whether the file at path was last written in an earlier boot than the
// given one.
func (m bootMark) outlived(path, boot string) bool {
	info, err := os.Stat(path)
	return err == nil && m.boot != "" && m.boot != boot && m.ino == inode(info)
}

func inode(info os.FileInfo) uint64 { return info.Sys().(*syscall.Stat_t).Ino }

// syncDir puts the names in the directory of path onto the disk.
func syncDir(path string) error {
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
