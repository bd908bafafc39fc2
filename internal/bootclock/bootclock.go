// Package bootclock reads the one clock that all processes of a host share and that nobody
// can set: wall time jumps when it is corrected.
package bootclock

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// Now is the time since the kernel booted, that of sleep included.
func Now() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		panic(fmt.Sprintf("reading the boot clock: %v", err)) // every kernel since 2.6.39 has it
	}
	return time.Duration(ts.Nano())
}
