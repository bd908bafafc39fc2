package bindingdb

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// A mark stands in the lock file and tells in which boot the bindings file was written
// last. It is on the disk before the first commit of a boot. So the commits themselves need
// not be, which costs a disk milliseconds: a process that dies takes nothing of them along,
// and what a loss of power leaves of them is of an earlier boot, of which nothing is needed.
type mark struct {
	boot string
	ino  uint64 // the bindings file's
}

// readMark returns the mark of a lock file, the zero one if it has none.
func readMark(lock *os.File) mark {
	text := make([]byte, 128)
	n, _ := lock.ReadAt(text, 0) // what is missing or cut is none
	var m mark
	if line, _, whole := strings.Cut(string(text[:n]), "\n"); whole {
		if _, err := fmt.Sscanf(line, "%s %d", &m.boot, &m.ino); err != nil {
			return mark{}
		}
	}
	return m
}

// write puts the mark into the lock file, and onto the disk.
func (m mark) write(lock *os.File) error {
	_, err := lock.WriteAt(fmt.Appendf(nil, "%s %020d\n", m.boot, m.ino), 0)
	if err = errors.Join(err, lock.Sync()); err != nil {
		return fmt.Errorf("marking the bindings file as this boot's: %w", err)
	}
	return nil
}

// outlived reports whether the file that stands at path was written last in an earlier
// boot than the one given.
func (m mark) outlived(path, boot string) bool {
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
