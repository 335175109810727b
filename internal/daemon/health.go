package daemon

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
)

// Health collects what the parts of a daemon say of themselves. A daemon is ready when every part is, and live when every
// part that promised to report has done so in time.
type Health struct {
	now   func() time.Time
	mu    sync.Mutex // guards all below
	parts map[string]*part
	notes map[string]string
}

type part struct {
	ready    bool
	reason   string
	within   time.Duration // 0: no promise
	reported time.Time
}

// NewHealth returns a Health without parts: live, and not ready.
func NewHealth() *Health {
	return &Health{now: time.Now, parts: map[string]*part{}, notes: map[string]string{}}
}

// Note says something beside the parts, which is shown with them and decides nothing. An empty text takes it back.
func (h *Health) Note(name, text string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.notes[name] = text; text == "" {
		delete(h.notes, name)
	}
}

// Part is one part's voice.
type Part struct {
	health *Health
	name   string
}

// Add declares a part; it is not ready until it says so. If within is not zero the part promises to report at least that
// often, and the daemon counts as hung when it does not.
func (h *Health) Add(name string, within time.Duration) *Part {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.parts[name] = &part{reason: "starting", within: within, reported: h.now()}
	return &Part{health: h, name: name}
}

// Ready says that the part does its work.
func (p *Part) Ready() { p.report(true, "") }

// NotReady says that it does not, and why.
func (p *Part) NotReady(reason string) { p.report(false, reason) }

// Alive repeats what the part said last, now.
func (p *Part) Alive() {
	p.health.mu.Lock()
	defer p.health.mu.Unlock()
	p.health.parts[p.name].reported = p.health.now()
}

func (p *Part) report(ready bool, reason string) {
	p.health.mu.Lock()
	defer p.health.mu.Unlock()
	it := p.health.parts[p.name]
	it.ready, it.reason, it.reported = ready, reason, p.health.now()
}

// State tells whether the daemon is live and ready, with a line for each part and each note.
func (h *Health) State() (live, ready bool, lines []string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	live, ready = true, len(h.parts) > 0
	for name, p := range h.parts {
		line := name + ": ready"
		if !p.ready {
			ready = false
			line = name + ": not ready: " + p.reason
		}
		if silent := h.now().Sub(p.reported); p.within > 0 && silent > p.within {
			live, ready = false, false
			line = fmt.Sprintf("%s: silent for %s, promised to report every %s", name, silent.Round(time.Second), p.within)
		}
		lines = append(lines, line)
	}
	for name, text := range h.notes {
		lines = append(lines, name+": "+text)
	}
	if len(h.parts) == 0 {
		lines = append(lines, "starting")
	}
	slices.Sort(lines)
	return live, ready, lines
}

// serve answers with 200 if good, 503 if not.
func (h *Health) serve(pick func(live, ready bool) bool) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		live, ready, lines := h.State()
		if !pick(live, ready) {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		fmt.Fprintln(w, strings.Join(lines, "\n"))
	}
}
