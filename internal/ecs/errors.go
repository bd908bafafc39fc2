package ecs

import "errors"

var (
	// ErrNoBinding: no attachment holds the address, or the attachment holds none.
	ErrNoBinding = errors.New("no binding")
	// ErrHeld: a second ADD of an attachment that holds an address.
	ErrHeld = errors.New("the attachment holds an address already; DEL it first")
	// ErrAddrTaken: the address asked for by name belongs to another attachment.
	ErrAddrTaken = errors.New("the address is taken")
	// ErrPoolFull: every address of the subnet is given.
	ErrPoolFull = errors.New("no address is free")
	// ErrBusy: another process held the bindings file for longer than the lock wait.
	ErrBusy = errors.New("the bindings file is locked by another process")
	// ErrDamaged: the bindings file is not what a bindings file can be.
	ErrDamaged = errors.New("the bindings file is damaged")
	// ErrNewerSchema: the bindings file was written by a later version.
	ErrNewerSchema = errors.New("the bindings file was written by a newer version")

	// ErrNotTheTasks: a connection that comes from a task's address is not the task's.
	ErrNotTheTasks = errors.New("not the task's connection")
	// ErrDockerUnavailable: the daemon cannot be asked, and nothing known answers instead.
	ErrDockerUnavailable = errors.New("the Docker daemon is unavailable")
	// ErrTaskNotReady: no container of the task has been seen yet.
	ErrTaskNotReady = errors.New("no container of the task is known yet")
	// ErrNoContainer: the task has no container of that ID or name.
	ErrNoContainer = errors.New("no such container in the task")
)
