package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"taskmeta/internal/dev/testnet"
)

// The shapes are a client's own: what is unsigned for AWS's SDKs is unsigned here.
type taskReply struct {
	Cluster, TaskARN, Family, Revision string
	DesiredStatus, KnownStatus         string
	Containers                         []containerReply
	Limits                             *struct {
		CPU    float64
		Memory uint64
	}
	TaskTags, ContainerInstanceTags map[string]string
	AvailabilityZone                string
	ExecutionStoppedAt              *time.Time
}

type containerReply struct {
	DockerId, Name, DockerName, Image, ImageID string
	Ports                                      []portReply
	Labels                                     map[string]string
	DesiredStatus, KnownStatus                 string
	ExitCode                                   *int
	Limits                                     limitsReply
	CreatedAt, StartedAt, FinishedAt           *time.Time
	Type                                       string
	Networks                                   []networkReply
	Health                                     *healthReply
	Volumes                                    []volumeReply
}

type portReply struct {
	ContainerPort uint16
	Protocol      string
	HostPort      uint16
}
type limitsReply struct{ CPU, Memory uint64 }
type networkReply struct {
	NetworkMode                  string
	IPv4Addresses, IPv6Addresses []string
}
type healthReply struct {
	Status      string    `json:"status"`
	StatusSince time.Time `json:"statusSince"`
	ExitCode    int       `json:"exitCode"`
	Output      string    `json:"output"`
}
type volumeReply struct{ DockerName, Source, Destination string }

// inspected is what `docker inspect` says of a container, as far as a reply shows it.
type inspected struct {
	Id, Name, Image string
	Created         time.Time
	State           struct {
		Status                string
		ExitCode              int
		StartedAt, FinishedAt time.Time
		Health                *struct {
			Status string
			Log    []struct {
				End      time.Time
				ExitCode int
				Output   string
			}
		}
	}
	HostConfig struct {
		CpuShares, Memory uint64
	}
	Config struct {
		Image        string
		Labels       map[string]string
		ExposedPorts map[string]struct{}
	}
	Mounts []struct{ Type, Name, Source, Destination string }
}

// expected is the container that a reply is to show, made from `docker inspect` alone.
func (h *host) expected(t *testing.T, id, address string) containerReply {
	t.Helper()
	text, err := h.docker.CLI("inspect", id)
	if err != nil {
		t.Fatal(err)
	}
	var all []inspected
	if err := json.Unmarshal([]byte(text), &all); err != nil {
		t.Fatal(err)
	}
	in := all[0]
	c := containerReply{
		DockerId: in.Id, DockerName: strings.TrimPrefix(in.Name, "/"),
		Name: in.Config.Labels["com.amazonaws.ecs.container-name"], Image: in.Config.Image, ImageID: in.Image,
		Labels: in.Config.Labels, Type: "NORMAL",
		Limits:    limitsReply{CPU: max(2, in.HostConfig.CpuShares), Memory: in.HostConfig.Memory >> 20},
		CreatedAt: &in.Created, StartedAt: &in.State.StartedAt,
		Networks: []networkReply{{NetworkMode: "awsvpc", IPv4Addresses: []string{address}}},
	}
	for port := range in.Config.ExposedPorts {
		var p portReply
		number, protocol, _ := strings.Cut(port, "/")
		if _, err := fmt.Sscan(number, &p.ContainerPort); err != nil {
			t.Fatal(err)
		}
		p.HostPort, p.Protocol = p.ContainerPort, protocol
		c.Ports = append(c.Ports, p)
	}
	slices.SortFunc(c.Ports, func(a, b portReply) int { return int(a.ContainerPort) - int(b.ContainerPort) })
	for _, m := range in.Mounts {
		c.Volumes = append(c.Volumes, volumeReply{m.Name, m.Source, m.Destination})
	}
	slices.SortFunc(c.Volumes, func(a, b volumeReply) int { return strings.Compare(a.Destination, b.Destination) })
	if health := in.State.Health; health != nil && len(health.Log) > 0 {
		last := health.Log[len(health.Log)-1]
		c.Health = &healthReply{strings.ToUpper(health.Status), last.End.UTC(), last.ExitCode, last.Output}
	}
	switch {
	case in.State.Status == "exited":
		c.DesiredStatus, c.KnownStatus = "STOPPED", "STOPPED"
		c.ExitCode, c.FinishedAt = &in.State.ExitCode, &in.State.FinishedAt
	case strings.Contains(c.Name, "pause"):
		c.DesiredStatus, c.KnownStatus, c.Type = "RESOURCES_PROVISIONED", "RESOURCES_PROVISIONED", "CNI_PAUSE"
	default:
		c.DesiredStatus, c.KnownStatus = "RUNNING", "RUNNING"
	}
	return c
}

// A scene is a task that asks, and another beside it.
type scene struct {
	*host
	web, other          *task
	app, sidecar, batch string // containers: two of web, one of other
	address             string // web's
	want                taskReply
}

func TestATaskIsToldTheTruth(t *testing.T) {
	h := newHost(t)
	h.serve(t)
	s := &scene{host: h, web: h.task(t, "web"), other: h.task(t, "other")}
	s.app = s.web.member(t, "app", "--memory", "64m", "--cpu-shares", "256",
		"--volume", "/srv", "--volume", h.dir+":/data:ro", "--label", "taskmeta.tag.team=edge",
		"--health-cmd", "echo fine", "--health-interval", "1s")
	s.sidecar = s.web.member(t, "sidecar")
	s.address = s.web.attach(t)

	s.batch = s.other.member(t, "batch")
	otherAddress := s.other.attach(t, "CNI_ARGS=TASK_ARN="+s.other.arn)
	if otherAddress == s.address {
		t.Fatalf("both tasks were given %s", s.address)
	}
	testnet.Await(t, "the health check", func() error {
		status, err := h.docker.CLI("inspect", "--format", "{{.State.Health.Status}}", s.app)
		if err == nil && status != "healthy" {
			err = fmt.Errorf("it is %s", status)
		}
		return err
	})
	// One check is enough: later ones would move the time of the last.
	if _, err := h.docker.CLI("pause", s.app); err != nil {
		t.Fatal(err)
	}

	s.want = taskReply{
		Cluster: "default", TaskARN: s.web.arn, Family: "web", Revision: "7",
		DesiredStatus: "RUNNING", KnownStatus: "RUNNING",
		Containers: []containerReply{
			h.expected(t, s.web.pause, s.address), h.expected(t, s.app, s.address), h.expected(t, s.sidecar, s.address),
		},
	}
	t.Run("the task with exactly its containers", s.showsTheTask)
	t.Run("each container by its ID, a prefix and its name", s.showsEachContainer)
	t.Run("its tags, where they are asked for", s.showsTags)
	t.Run("statistics of all and of one, as Docker gives them", s.showsStatistics)
	t.Run("a second task sees itself and nothing of the first", s.hidesOthers)
	t.Run("errors", s.reportsErrors)
	t.Run("a container that comes late, and one that ends", s.followsChanges)
}

func (s *scene) showsTheTask(t *testing.T) {
	for _, path := range []string{"/v2/metadata", "/v2/metadata/"} {
		testnet.Await(t, path+" to show the task", func() error {
			var got taskReply
			s.ask(t, s.sidecar, "GET", path).decode(t, &got)
			if diff := cmp.Diff(s.want, got); diff != "" {
				return fmt.Errorf("-want +got:\n%s", diff)
			}
			return nil
		})
	}
}

func (s *scene) showsEachContainer(t *testing.T) {
	for i, id := range []string{s.web.pause, s.app, s.sidecar} {
		for _, path := range []string{id, id + "/", id[:12], s.want.Containers[i].Name} {
			var got containerReply
			s.ask(t, s.sidecar, "GET", "/v2/metadata/"+path).decode(t, &got)
			if diff := cmp.Diff(s.want.Containers[i], got); diff != "" {
				t.Errorf("%s: -want +got:\n%s", path, diff)
			}
		}
	}
}

func (s *scene) showsTags(t *testing.T) {
	var got taskReply
	s.ask(t, s.sidecar, "GET", "/v2/metadataWithTags").decode(t, &got)
	if diff := cmp.Diff(map[string]string{"team": "edge"}, got.TaskTags); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func (s *scene) showsStatistics(t *testing.T) {
	if _, err := s.docker.CLI("unpause", s.app); err != nil {
		t.Fatal(err)
	}
	all := map[string]json.RawMessage{}
	s.ask(t, s.sidecar, "GET", "/v2/stats").decode(t, &all)
	if len(all) != 3 {
		t.Errorf("statistics of %d containers; want 3", len(all))
	}
	for _, id := range []string{s.web.pause, s.app, s.sidecar} {
		checkStats(t, id, all[id])
		var one json.RawMessage
		s.ask(t, s.sidecar, "GET", "/v2/stats/"+id+"/").decode(t, &one)
		checkStats(t, id, one)
	}
}

func (s *scene) hidesOthers(t *testing.T) {
	var got taskReply
	s.ask(t, s.batch, "GET", "/v2/metadata").decode(t, &got)
	if got.TaskARN != s.other.arn || len(got.Containers) != 2 {
		t.Errorf("the second task is told %+v", got)
	}
	for _, id := range []string{s.web.pause, s.app, "app", strings.Repeat("0", 64)} {
		s.ask(t, s.batch, "GET", "/v2/metadata/"+id).fails(t, http.StatusNotFound, "ContainerNotFound")
		s.ask(t, s.batch, "GET", "/v2/stats/"+id).fails(t, http.StatusNotFound, "ContainerNotFound")
	}
}

func (s *scene) reportsErrors(t *testing.T) {
	for _, path := range []string{"/", "/v2", "/v2/tasks", "/v2/metadata/" + s.app + "/more", "/v3", "//v2/metadata"} {
		s.ask(t, s.sidecar, "GET", path).fails(t, http.StatusNotFound, "NotFound")
	}
	r := s.ask(t, s.sidecar, "POST", "/v2/metadata")
	r.fails(t, http.StatusMethodNotAllowed, "MethodNotAllowed")
	if allow := r.Header.Get("Allow"); allow != "GET, HEAD" {
		t.Errorf("Allow: %q; want GET, HEAD", allow)
	}
	for _, header := range []string{"X-Forwarded-For: 169.254.172.9", "Forwarded: for=169.254.172.9"} {
		s.ask(t, s.sidecar, "GET", "/v2/metadata", header).fails(t, http.StatusForbidden, "ForwardedRequest")
	}
	s.ask(t, s.sidecar, "GET", "/v2/metadata", "Host: evil.example").fails(t, http.StatusForbidden, "HostNotAllowed")
	if r := s.ask(t, s.sidecar, "HEAD", "/v2/metadata"); r.StatusCode != http.StatusOK || r.body != "" {
		t.Errorf("HEAD: %d with body %q; want 200 without", r.StatusCode, r.body)
	}
}

func (s *scene) followsChanges(t *testing.T) {
	late := s.web.member(t, "late")
	if _, err := s.docker.CLI("kill", s.sidecar); err != nil {
		t.Fatal(err)
	}
	testnet.Await(t, "the answer to follow", func() error {
		var got taskReply
		s.ask(t, s.app, "GET", "/v2/metadata").decode(t, &got)
		if len(got.Containers) != 4 || got.Containers[3].DockerId != late {
			return fmt.Errorf("the late container is not the fourth of %+v", got.Containers)
		}
		if diff := cmp.Diff(s.expected(t, s.sidecar, s.address), got.Containers[2]); diff != "" {
			return fmt.Errorf("the ended one: -want +got:\n%s", diff)
		}
		return nil
	})
	all := map[string]json.RawMessage{}
	s.ask(t, s.app, "GET", "/v2/stats").decode(t, &all)
	if string(all[s.sidecar]) != "null" {
		t.Errorf("the ended container's statistics are %s; want null", all[s.sidecar])
	}
}

// checkStats checks one container's statistics: Docker's own object, a full sample, with
// the task's interfaces.
func checkStats(t *testing.T, id string, raw json.RawMessage) {
	t.Helper()
	type cpu struct {
		Usage struct {
			Total uint64 `json:"total_usage"`
		} `json:"cpu_usage"`
		System uint64 `json:"system_cpu_usage"`
	}
	var s struct {
		ID       string                        `json:"id"`
		Read     time.Time                     `json:"read"`
		PreRead  time.Time                     `json:"preread"`
		CPU      cpu                           `json:"cpu_stats"`
		PreCPU   cpu                           `json:"precpu_stats"`
		Memory   struct{ Usage, Limit uint64 } `json:"memory_stats"`
		Networks map[string]struct {
			RxBytes uint64 `json:"rx_bytes"`
		} `json:"networks"`
	}
	if err := json.Unmarshal(raw, &s); err != nil {
		t.Fatalf("statistics %s: %v", raw, err)
	}
	if s.ID != id || s.PreCPU.System == 0 || s.CPU.System <= s.PreCPU.System || !s.Read.After(s.PreRead) || s.Memory.Usage == 0 {
		t.Errorf("statistics of %s are not a full sample: %s", id, raw)
	}
	if _, ok := s.Networks["eth0"]; !ok {
		t.Errorf("statistics of %s lack the task's interface: %s", id, raw)
	}
}
