package metadata

import (
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"sync/atomic"

	"golang.org/x/time/rate"

	"taskmeta/internal/ecs"
)

// A refusal is an answer other than 200. Its message is the same for every caller: it
// holds nothing of the request, of other tasks or of the cause, which only the log shows.
type refusal struct {
	status     int
	code       string
	message    string
	retryAfter string // seconds; "" for none
}

var (
	noBinding = &refusal{status: http.StatusForbidden, code: "NoBinding",
		message: "no task holds the source address of this connection; ask from inside a task, on a new connection"}
	forwardedRequest = &refusal{status: http.StatusForbidden, code: "ForwardedRequest",
		message: "the request bears X-Forwarded-For or Forwarded; ask directly, without a proxy"}
	hostNotAllowed = &refusal{status: http.StatusForbidden, code: "HostNotAllowed",
		message: "the Host header is neither " + ecs.EndpointAddr.String() + ", the address connected to, nor a name that --allow-host adds"}
	witnessFailed = &refusal{status: http.StatusForbidden, code: "WitnessFailed",
		message: "the network namespace of the task has no socket with this source address and port; ask from the task's own namespace"}
	notFound = &refusal{status: http.StatusNotFound, code: "NotFound",
		message: "no such path; there are /v2/metadata, /v2/metadata/<id>, /v2/metadataWithTags, /v2/stats and /v2/stats/<id>"}
	containerNotFound = &refusal{status: http.StatusNotFound, code: "ContainerNotFound",
		message: "the task has no such container; <id> is a Docker ID, its first 12 or more digits, or the container's name in the task"}
	methodNotAllowed = &refusal{status: http.StatusMethodNotAllowed, code: "MethodNotAllowed",
		message: "the method is neither GET nor HEAD"}
	rateLimited = &refusal{status: http.StatusTooManyRequests, code: "RateLimited", retryAfter: "1",
		message: "the task asks more often than it may; try again later"}
	internalError = &refusal{status: http.StatusInternalServerError, code: "Internal", retryAfter: "5",
		message: "the reply could not be made; the resolver's log says why"}
	witnessUnavailable = &refusal{status: http.StatusServiceUnavailable, code: "WitnessUnavailable", retryAfter: "1",
		message: "the network namespace of the task cannot be asked about this connection; try again later"}
	bindingsUnavailable = &refusal{status: http.StatusServiceUnavailable, code: "BindingsUnavailable", retryAfter: "1",
		message: "the bindings file cannot be read; try again later"}
	taskNotReady = &refusal{status: http.StatusServiceUnavailable, code: "TaskNotReady", retryAfter: "1",
		message: "no container of the task has been seen yet; try again later"}
	dockerUnavailable = &refusal{status: http.StatusServiceUnavailable, code: "DockerUnavailable", retryAfter: "5",
		message: "the Docker daemon does not answer; try again later"}
)

var refusals = []*refusal{
	noBinding, forwardedRequest, hostNotAllowed, witnessFailed, notFound, containerNotFound, methodNotAllowed,
	rateLimited, internalError, witnessUnavailable, bindingsUnavailable, taskNotReady, dockerUnavailable,
}

// Error makes a refusal an error, so that it can travel with its cause wrapped beside it.
func (f *refusal) Error() string { return f.message }

// because joins a refusal with what led to it.
func (f *refusal) because(cause error) error { return fmt.Errorf("%w: %w", f, cause) }

// expected reports that a caller's mistake alone leads here: no operator need read of it.
func (f *refusal) expected() bool {
	return f.status == http.StatusNotFound || f.status == http.StatusMethodNotAllowed
}

// body is the JSON that tells the caller. Codes and messages are plain ASCII, in which Go's
// quotes are JSON's. (json.Marshal would write the <id> of a message as \u003cid\u003e.)
func (f *refusal) body() []byte {
	return fmt.Appendf(nil, `{"code":%q,"message":%q}`, f.code, f.message)
}

// refusalIn is the refusal that err carries.
func refusalIn(err error) *refusal {
	if f, ok := errors.AsType[*refusal](err); ok {
		return f
	}
	return internalError
}

// dockerRefusal is how an error of the Docker side reads to a caller.
func dockerRefusal(err error) error {
	switch {
	case errors.Is(err, ecs.ErrNoBinding):
		return noBinding.because(err)
	case errors.Is(err, ecs.ErrTaskNotReady):
		return taskNotReady.because(err)
	case errors.Is(err, ecs.ErrNoContainer):
		return containerNotFound.because(err)
	default:
		return dockerUnavailable.because(err)
	}
}

// maxRefusals is how many refusals a task is sent per second, and all who are no task
// together; those beyond wait for their turn, with 512 connections about a second. So a
// flood of requests over the limit, or of such as never come to it, costs those who send
// it time, and not the other tasks.
const maxRefusals = 500

func newRefusalLimiter() *rate.Limiter { return rate.NewLimiter(maxRefusals, maxRefusals) }

func (s *Server) refusalLimit(c *conn) *rate.Limiter {
	if c.tenant == nil {
		return s.strangers
	}
	return c.tenant.refusals
}

// warnings bounds how often one kind of refusal is logged, so that a flood of one fills
// no disk and hides no other.
type warnings struct {
	limit      *rate.Limiter
	suppressed atomic.Int64
}

// warn logs why a request was refused, unless it is a caller's plain mistake.
func (s *Server) warn(f *refusal, client netip.AddrPort, cause error) {
	if f.expected() {
		return
	}
	w := s.warnings[f]
	if !w.limit.Allow() {
		w.suppressed.Add(1)
		return
	}
	s.cfg.Logger.Warn("request refused", "code", f.code, "addr", client.String(), "err", cause,
		"suppressed", w.suppressed.Swap(0))
}
