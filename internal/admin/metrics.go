package admin

import (
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// What the state of the host is exported as.
var (
	infoDesc = prometheus.NewDesc("taskmeta_build_info",
		"Always 1; the version is in the label.", []string{"version"}, nil)
	checkDesc = prometheus.NewDesc("taskmeta_check_passing",
		"Whether a part that the resolver needs works, as /readyz tells.", []string{"check"}, nil)
	poolDesc = prometheus.NewDesc("taskmeta_pool_addresses",
		"Addresses of a subnet that may be given to tasks, used and free.", []string{"subnet", "state"}, nil)
	bindingsDesc = prometheus.NewDesc("taskmeta_bindings",
		"Attachments that hold an address.", nil, nil)
	goneDesc = prometheus.NewDesc("taskmeta_bindings_gone",
		"Attachments that hold an address though no container of theirs runs. Not exported while the Docker daemon cannot be asked.", nil, nil)
	loadsDesc = prometheus.NewDesc("taskmeta_bindings_loads_total",
		"Times that the bindings file was loaded, because it had changed.", nil, nil)
	connectedDesc = prometheus.NewDesc("taskmeta_docker_connected",
		"Whether the Docker daemon's events are being followed.", nil, nil)
	containersDesc = prometheus.NewDesc("taskmeta_docker_containers",
		"Containers known, of tasks and others.", nil, nil)
	eventsDesc = prometheus.NewDesc("taskmeta_docker_events_total",
		"Events received from the Docker daemon.", nil, nil)
	resyncsDesc = prometheus.NewDesc("taskmeta_docker_resyncs_total",
		"Times that all containers were listed anew.", nil, nil)
	streamsDesc = prometheus.NewDesc("taskmeta_docker_stats_streams",
		"Open streams of container statistics.", nil, nil)
	repairsDesc = prometheus.NewDesc("taskmeta_guard_repairs_total",
		"Times that the host's packet filter was found changed and was put right.", nil, nil)
	portsDesc = prometheus.NewDesc("taskmeta_guard_unknown_ports",
		"Ports of the bridge that belong to no attachment.", nil, nil)
	uncontainedDesc = prometheus.NewDesc("taskmeta_guard_uncontained_containers",
		"Containers of tasks that can change the host's network, whatever the guard of their port.", nil, nil)

	stateDescs = []*prometheus.Desc{
		infoDesc, checkDesc, poolDesc, bindingsDesc, goneDesc, loadsDesc, connectedDesc,
		containersDesc, eventsDesc, resyncsDesc, streamsDesc, repairsDesc, portsDesc, uncontainedDesc,
	}
)

// metrics is the handler of /metrics.
func (s *Server) metrics() http.Handler {
	registry := prometheus.NewRegistry()
	registry.MustRegister(
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		s.Requests,
		hostCollector{s},
	)
	return promhttp.HandlerFor(registry, promhttp.HandlerOpts{})
}

// A hostCollector reads the state of the host at each scrape.
type hostCollector struct{ server *Server }

// Describe implements [prometheus.Collector].
func (c hostCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range stateDescs {
		ch <- d
	}
}

// Collect implements [prometheus.Collector]. What can't be known now is left out: a zero
// would be a false statement.
func (c hostCollector) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, value float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value, labels...)
	}
	count := func(d *prometheus.Desc, value uint64) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(value))
	}
	status := c.server.status()
	gauge(infoDesc, 1, status.Version)
	for _, check := range status.Checks {
		gauge(checkDesc, number(check.OK), check.Name)
	}
	if status.BindingsKnown {
		gauge(bindingsDesc, float64(len(status.Tasks)))
		for _, p := range status.Pools {
			gauge(poolDesc, float64(p.Used), p.Subnet.String(), "used")
			gauge(poolDesc, float64(p.Free), p.Subnet.String(), "free")
		}
		if status.Docker.Connected {
			gauge(goneDesc, float64(status.gone()))
		}
	}
	count(loadsDesc, status.BindingsLoads)
	gauge(connectedDesc, number(status.Docker.Connected))
	gauge(containersDesc, float64(status.Docker.Containers))
	gauge(streamsDesc, float64(status.Docker.Streams))
	count(eventsDesc, status.Docker.Events)
	count(resyncsDesc, status.Docker.Resyncs)
	count(repairsDesc, status.Guard.Repairs)
	gauge(portsDesc, float64(len(status.Guard.UnknownPorts)))
	gauge(uncontainedDesc, float64(len(status.Uncontained())))
}

func number(yes bool) float64 {
	if yes {
		return 1
	}
	return 0
}
