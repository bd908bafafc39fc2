package metadata

import (
	"runtime"
	"sync"
	"sync/atomic"
	"weak"

	"golang.org/x/time/rate"

	"taskmeta/internal/ecs"
)

// A tenant is what the server keeps about a binding while it lasts.
type tenant struct {
	limit    *rate.Limiter // of requests
	refusals *rate.Limiter // see maxRefusals
	rendered atomic.Pointer[rendering]
}

// tenants finds the tenant of a binding. It does not keep the binding alive: when the
// last one who knows a binding drops it, the collector takes the tenant too, so there
// are never more tenants than bindings and nobody has to say that one has ended.
type tenants struct {
	rate  rate.Limit
	burst int

	mu sync.Mutex
	of map[weak.Pointer[ecs.Binding]]*tenant
}

func (ts *tenants) get(b *ecs.Binding) *tenant {
	key := weak.Make(b)
	ts.mu.Lock()
	defer ts.mu.Unlock()
	t, ok := ts.of[key]
	if !ok {
		t = &tenant{limit: rate.NewLimiter(ts.rate, ts.burst), refusals: newRefusalLimiter()}
		ts.of[key] = t
		runtime.AddCleanup(b, ts.drop, key)
	}
	return t
}

func (ts *tenants) drop(key weak.Pointer[ecs.Binding]) {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	delete(ts.of, key)
}
