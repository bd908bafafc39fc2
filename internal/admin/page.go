package admin

import (
	"bytes"
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"hash/fnv"
	"html/template"
	"net/http"
	"net/netip"
	"slices"
	"strings"

	"taskmeta/internal/ecs"
)

var (
	//go:embed page.html
	pageHTML string
	//go:embed page.css
	pageCSS string
	//go:embed page.js
	pageJS string
)

var pageTemplate = template.Must(template.New("page").Funcs(template.FuncMap{
	"css":   func() template.CSS { return template.CSS(pageCSS) },
	"js":    func() template.JS { return template.JS(pageJS) },
	"short": shortID,
}).Parse(pageHTML))

// pagePolicy lets the page run its own script and style, ask its own server, and nothing
// else: were markup to slip in by a container's name, it could do nothing.
var pagePolicy = fmt.Sprintf("default-src 'none'; script-src %s; style-src %s; connect-src 'self'; img-src data:; "+
	"base-uri 'none'; form-action 'none'; frame-ancestors 'none'", hashSource(pageJS), hashSource(pageCSS))

// hashSource names an inline script or style in a Content-Security-Policy.
func hashSource(text string) string {
	sum := sha256.Sum256([]byte(text))
	return "'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'"
}

// page shows the status to people. With part=now or part=inventory it is that part alone,
// for the script that keeps the page current.
func (s *Server) page(w http.ResponseWriter, r *http.Request) {
	part := r.URL.Query().Get("part")
	switch part {
	case "":
		part = "page"
	case "now", "inventory":
	default:
		reply(w, http.StatusNotFound, map[string]string{"code": "NotFound", "message": "part is now or inventory"})
		return
	}
	var body bytes.Buffer
	if err := pageTemplate.ExecuteTemplate(&body, part, newView(s.status())); err != nil {
		reply(w, http.StatusInternalServerError, map[string]string{"code": "Internal", "message": err.Error()})
		return
	}
	header := w.Header()
	header.Set("Content-Type", "text/html; charset=utf-8")
	header.Set("Content-Security-Policy", pagePolicy)
	header.Set("Referrer-Policy", "no-referrer")
	_, _ = w.Write(body.Bytes()) // a client that has gone is not our error
}

// A view is a status as the page shows it.
type view struct {
	Status
	Failed []Finding
	Gone   int
	// Uncontained are containers by their names.
	Uncontained []string
	// Inventory changes when what the part of that name shows does.
	Inventory string
	Maps      []poolMap
	Bars      []bar
	Peak      uint64 // answers in the busiest of the seconds shown
}

func newView(status Status) view {
	v := view{Status: status, Gone: status.gone(), Uncontained: status.Uncontained(), Inventory: fingerprint(status)}
	for _, f := range status.Checks {
		if !f.OK {
			v.Failed = append(v.Failed, f)
		}
	}
	for _, p := range status.Pools {
		v.Maps = append(v.Maps, newPoolMap(p, status.Tasks))
	}
	v.Bars, v.Peak = bars(status.Requests.Seconds)
	return v
}

// fingerprint is the same for as long as the pools and tasks are.
func fingerprint(s Status) string {
	h := fnv.New64a()
	_ = json.NewEncoder(h).Encode([]any{s.BindingsKnown, s.Pools, s.Tasks}) // neither can fail
	return fmt.Sprintf("%x", h.Sum64())
}

// A bar is the stack of one second's answers: heights of 100 for the busiest second.
type bar struct {
	X                         int
	Answered, Refused, Failed span
}

// A span is a stretch of a bar, from its top.
type span struct{ Y, Height float64 }

func bars(seconds []Count) (list []bar, peak uint64) {
	for _, s := range seconds {
		peak = max(peak, s.All())
	}
	for x, s := range seconds {
		foot := 100.0
		stack := func(n uint64) span {
			height := 100 * float64(n) / float64(max(peak, 1))
			foot -= height
			return span{foot, height}
		}
		list = append(list, bar{x, stack(s.Answered), stack(s.Refused), stack(s.Failed)})
	}
	return list, peak
}

// States of a [cell] that holds no task's address; those that do have the task's.
const (
	cellFree     = "free"
	cellReserved = "reserved"
)

// A poolMap is a pool drawn address by address, in blocks of 256.
type poolMap struct {
	Pool
	Blocks []block
}

type block struct {
	Title string
	Cells []cell
}

// A cell is one address.
type cell struct {
	Addr  netip.Addr
	State string
	Title string
	// Task is the first address of the task that holds Addr, invalid if none does.
	Task netip.Addr
}

const (
	blockBits = 8
	// drawnBits is the size from which a subnet is drawn by its held addresses alone.
	drawnBits = 12
)

func newPoolMap(p Pool, tasks []Task) poolMap {
	m := poolMap{Pool: p}
	held := make(map[netip.Addr]*Task)
	for i := range tasks {
		for _, addr := range tasks[i].Addrs {
			if p.Subnet.Contains(addr) {
				held[addr] = &tasks[i]
			}
		}
	}
	pool := ecs.Pool{Subnet: p.Subnet, Gateway: p.Gateway}
	hostBits := p.Subnet.Addr().BitLen() - p.Subnet.Bits()
	if hostBits > drawnBits {
		if len(held) == 0 {
			return m
		}
		b := block{Title: "held addresses"}
		for addr := range held {
			b.Cells = append(b.Cells, newCell(addr, pool, held))
		}
		slices.SortFunc(b.Cells, func(a, b cell) int { return a.Addr.Compare(b.Addr) })
		m.Blocks = append(m.Blocks, b)
		return m
	}
	bits := max(p.Subnet.Bits(), p.Subnet.Addr().BitLen()-blockBits)
	for addr := p.Subnet.Addr(); p.Subnet.Contains(addr); {
		part := netip.PrefixFrom(addr, bits)
		b := block{Title: part.String()}
		for ; part.Contains(addr); addr = addr.Next() {
			b.Cells = append(b.Cells, newCell(addr, pool, held))
		}
		m.Blocks = append(m.Blocks, b)
	}
	return m
}

func newCell(addr netip.Addr, pool ecs.Pool, held map[netip.Addr]*Task) cell {
	c := cell{Addr: addr, State: cellFree}
	t := held[addr]
	switch {
	case t != nil:
		c.State, c.Task = t.State, t.Addrs[0]
		c.Title = fmt.Sprintf("%s: %s, %s", addr, t.Title(), t.State)
		return c
	case addr == pool.Gateway:
		c.State = cellReserved
		c.Title = fmt.Sprintf("%s: the gateway", addr)
		return c
	case !pool.Grantable(addr):
		c.State = cellReserved
	}
	c.Title = fmt.Sprintf("%s: %s", addr, c.State)
	return c
}

// Title is what people call the task: its definition, else its ARN, else its container.
func (t *Task) Title() string {
	switch {
	case t.Family != "" && t.Revision != "":
		return t.Family + ":" + t.Revision
	case t.Family != "":
		return t.Family
	case t.ARN != "":
		return t.ARN[strings.LastIndexByte(t.ARN, '/')+1:]
	default:
		return shortID(t.Container)
	}
}

// shortID cuts a Docker ID to the length that the docker command shows.
func shortID(id string) string {
	const shown = 12
	if len(id) == 64 {
		return id[:shown]
	}
	return id
}
