package cniedge

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"

	"github.com/containernetworking/cni/pkg/types"

	"taskmeta/internal/ecs"
)

// Codes of our own. The specification leaves those from 100 up to plugins; of its own we
// use 1, 4 (environment), 5 (I/O), 6 (JSON), 7 (configuration), 8 (namespace), 11 (try
// again later), 50 and 51 (STATUS), and 999 for the rest.
const (
	CodePoolFull    uint = 100 + iota // every address of the subnet is given
	CodeHeld                          // ADD of an attachment that was added already
	CodeAddrTaken                     // the address asked for belongs to another attachment
	CodeMismatch                      // CHECK: what is there is not what ADD returned
	CodeDamaged                       // the bindings file cannot be what was written
	CodeNewerSchema                   // the bindings file is a later version's
)

// Error gives err, which is not nil, the code that a runtime acts on. It must be the last wrap: Main takes
// the first *types.Error in the chain and drops all that was said around it. An error
// that bears a code already keeps it, and keeps what was said around it as well.
func Error(operation string, err error) error {
	return types.NewError(code(err), operation, err.Error())
}

func code(err error) uint {
	var coded *types.Error
	var bad *badInput
	var path *fs.PathError
	switch {
	case errors.As(err, &coded):
		return coded.Code
	case errors.As(err, &bad):
		return bad.code
	case errors.Is(err, ecs.ErrBusy):
		return types.ErrTryAgainLater
	case errors.Is(err, ecs.ErrPoolFull):
		return CodePoolFull
	case errors.Is(err, ecs.ErrHeld):
		return CodeHeld
	case errors.Is(err, ecs.ErrAddrTaken):
		return CodeAddrTaken
	case errors.Is(err, ecs.ErrNoBinding):
		return CodeMismatch
	case errors.Is(err, ecs.ErrDamaged):
		return CodeDamaged
	case errors.Is(err, ecs.ErrNewerSchema):
		return CodeNewerSchema
	case errors.As(err, &path):
		return types.ErrIOFailure
	}
	return types.ErrInternal
}

// badInput is a value that the runtime or its operator gave and that cannot be used.
type badInput struct {
	code                  uint
	name, value, expected string
}

func (e *badInput) Error() string {
	return fmt.Sprintf("%s is %s: expected %s", e.name, e.value, e.expected)
}

// BadKey is the error for a key of the network configuration: its path such as
// "ipam.ipv4-subnet", its value as it was written, and what was expected instead.
func BadKey(path string, value json.RawMessage, expected string) error {
	shown := string(value)
	if len(value) == 0 {
		shown = "missing"
	}
	return &badInput{types.ErrInvalidNetworkConfig, path, shown, expected}
}

// BadEnv is the same for a variable of the environment.
func BadEnv(name, value, expected string) error {
	return &badInput{types.ErrInvalidEnvironmentVariables, name, fmt.Sprintf("%q", value), expected}
}
