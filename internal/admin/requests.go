package admin

import (
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// window is how far back the status page looks, in seconds.
const window = 60

// durationBuckets (seconds) are fine where answers come from memory, and reach beyond the
// 2.5 s that a first sample of statistics may take.
var durationBuckets = []float64{50e-6, 100e-6, 250e-6, 500e-6, 1e-3, 2.5e-3, 5e-3, 10e-3, 50e-3, 250e-3, 1, 2.5, 5}

var requestsDesc = prometheus.NewDesc("taskmeta_requests_total",
	"Answers given to containers, by what was asked and the HTTP status. Endpoint connection with code 429 is a connection closed because its source address had too many.",
	[]string{"endpoint", "code"}, nil)

// Requests counts the answers that containers were given. It is a [prometheus.Collector].
type Requests struct {
	duration *prometheus.HistogramVec
	start    time.Time

	mu     sync.Mutex
	totals map[answer]*total
	recent [window + 1]second // by the second, modulo the length
}

// An answer is what was asked and the status it got.
type answer struct {
	endpoint string
	status   int
}

type total struct {
	count uint64
	took  prometheus.Observer
}

// A second is what happened in one, counted from the start.
type second struct {
	at int64
	Count
}

// NewRequests starts counting.
func NewRequests() *Requests {
	return &Requests{
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "taskmeta_request_duration_seconds",
			Help:    "Time from the end of a request's header to the end of its answer.",
			Buckets: durationBuckets,
		}, []string{"endpoint"}),
		start:  time.Now(),
		totals: make(map[answer]*total),
	}
}

// Observe counts one answer. The endpoint must be one of a fixed set, since each becomes
// the value of a label.
func (r *Requests) Observe(endpoint string, status int, took time.Duration) {
	now := r.now()
	r.mu.Lock()
	t := r.totals[answer{endpoint, status}]
	if t == nil {
		t = &total{took: r.duration.WithLabelValues(endpoint)}
		r.totals[answer{endpoint, status}] = t
	}
	t.count++
	s := &r.recent[now%(window+1)]
	if s.at != now {
		*s = second{at: now}
	}
	s.add(status, 1)
	r.mu.Unlock()
	t.took.Observe(took.Seconds())
}

// now is the second that goes on.
func (r *Requests) now() int64 { return int64(time.Since(r.start) / time.Second) }

// Describe implements [prometheus.Collector].
func (r *Requests) Describe(ch chan<- *prometheus.Desc) {
	ch <- requestsDesc
	r.duration.Describe(ch)
}

// Collect implements [prometheus.Collector].
func (r *Requests) Collect(ch chan<- prometheus.Metric) {
	r.duration.Collect(ch)
	r.mu.Lock()
	defer r.mu.Unlock()
	for a, t := range r.totals {
		ch <- prometheus.MustNewConstMetric(requestsDesc, prometheus.CounterValue, float64(t.count),
			a.endpoint, strconv.Itoa(a.status))
	}
}

// A Count is a number of answers by kind.
type Count struct {
	// Answered are those with status 200, Refused with 4xx, Failed with 5xx.
	Answered uint64 `json:"answered"`
	Refused  uint64 `json:"refused"`
	Failed   uint64 `json:"failed"`
}

// All is the number of all answers.
func (c Count) All() uint64 { return c.Answered + c.Refused + c.Failed }

func (c *Count) add(status int, n uint64) {
	switch {
	case status >= http.StatusInternalServerError:
		c.Failed += n
	case status >= http.StatusBadRequest:
		c.Refused += n
	default:
		c.Answered += n
	}
}

// Traffic is what containers asked.
type Traffic struct {
	// Since the resolver started: all answers, and those of each HTTP status.
	Total  Count             `json:"total"`
	ByCode map[string]uint64 `json:"byCode"`
	// Minute is the sum of Seconds.
	Minute Count `json:"minute"`
	// Seconds are the 60 before the one that goes on, the oldest first.
	Seconds []Count `json:"seconds"`
}

// traffic is the state of the counts now.
func (r *Requests) traffic() Traffic {
	t := Traffic{ByCode: make(map[string]uint64), Seconds: make([]Count, 0, window)}
	now := r.now()
	r.mu.Lock()
	defer r.mu.Unlock()
	for a, of := range r.totals {
		t.Total.add(a.status, of.count)
		t.ByCode[strconv.Itoa(a.status)] += of.count
	}
	for at := now - window; at < now; at++ {
		var c Count
		if s := &r.recent[(at+window+1)%(window+1)]; s.at == at {
			c = s.Count
		}
		t.Minute.Answered += c.Answered
		t.Minute.Refused += c.Refused
		t.Minute.Failed += c.Failed
		t.Seconds = append(t.Seconds, c)
	}
	return t
}
