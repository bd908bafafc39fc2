package metadata

import (
	"sync/atomic"

	"golang.org/x/time/rate"
)

// A tenant is what the server keeps about a binding while that lasts.
type tenant struct {
	limit    *rate.Limiter // of requests
	refusals *rate.Limiter // see maxRefusals
	rendered atomic.Pointer[rendering]
}

func newTenant(limit rate.Limit, burst int) *tenant {
	return &tenant{limit: rate.NewLimiter(limit, burst), refusals: newRefusalLimiter()}
}
