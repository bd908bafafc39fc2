package bindingdb

import (
	"context"
	"os"

	"golang.org/x/sys/unix"
)

// Lock takes the lock of another file than the bindings', which it makes if it is missing:
// alone, or together with others who are not. It waits in the kernel's queue until ctx
// ends: [ecs.ErrBusy] then. Closing the file gives the lock back, as does the end of the
// process.
func Lock(ctx context.Context, path string, alone bool) (*os.File, error) {
	how := unix.LOCK_SH
	if alone {
		how = unix.LOCK_EX
	}
	return lock(ctx, path, how, forever)
}
