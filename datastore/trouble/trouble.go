// Package trouble keeps account of what a process cannot read at present: which kinds, and why. When an API server goes, everything
// that follows it fails at once; people are told once, with the reason and what to do, and once more when it is over.
//
// It refuses to act: whoever fails tries again by himself.
package trouble

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"

	"github.com/muslin-net/muslin/datastore"
	"github.com/muslin-net/muslin/internal/backoff"
)

// Reason is why something cannot be read.
type Reason string

// The reasons.
const (
	Unreachable  Reason = "Unreachable"  // nobody answers, or not in time
	Unauthorized Reason = "Unauthorized" // the server does not know who asks
	Forbidden    Reason = "Forbidden"    // it does, and a role is missing
	Missing      Reason = "Missing"      // the server knows no such kind
	Failing      Reason = "Failing"      // anything else
)

// processName stands for the name of the process.
const processName = "PROCESS"

// remedy is what each means, and what to do.
var remedy = map[Reason]string{
	Unreachable:  "the API server or etcd does not answer; check that it runs and that this host can reach it",
	Unauthorized: "the server does not accept PROCESS's credentials: the token is expired, or its account is gone; renew them (in a pod: check the projected token and the service account)",
	Forbidden:    "PROCESS's account lacks permissions; apply the ClusterRole and the Role of PROCESS",
	Missing:      "the API server does not know these kinds; apply the CustomResourceDefinitions",
	Failing:      "the server answers with an error",
}

// ReasonOf finds the reason in an error.
func ReasonOf(err error) Reason {
	switch {
	case apierrors.IsUnauthorized(err):
		return Unauthorized
	case apierrors.IsForbidden(err):
		return Forbidden
	case apierrors.IsNotFound(err), meta.IsNoMatchError(err):
		return Missing
	case errors.As(err, new(apierrors.APIStatus)) && !apierrors.IsServerTimeout(err) && !apierrors.IsServiceUnavailable(err) &&
		!apierrors.IsTimeout(err) && !apierrors.IsTooManyRequests(err) && !errors.Is(err, datastore.ErrUnavailable):
		return Failing
	}
	return Unreachable
}

// attempt is how long one attempt of Until may take.
const attempt = 30 * time.Second

// settle is how long what fails is gathered before it is told.
const settle = 300 * time.Millisecond

// Board has what fails now. Its methods may be called from any goroutine.
type Board struct {
	process string
	note    func(text string)
	log     *slog.Logger
	gauge   *prometheus.GaugeVec

	mu      sync.Mutex // guards all below
	failing map[string]failure
	noted   string      // what note was given last
	told    []Reason    // what the log has told last
	timer   *time.Timer // runs while there is news
}

type failure struct {
	reason Reason
	err    error
}

// NewBoard returns a Board of a process with nothing on it. note is given the present state whenever it changes, empty if all is
// well.
func NewBoard(process string, note func(text string), r prometheus.Registerer, log *slog.Logger) *Board {
	b := &Board{
		process: process, note: note, log: log, failing: map[string]failure{},
		gauge: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Namespace: strings.ReplaceAll(process, "-", "_"), Name: "unreadable_kinds",
			Help: "Kinds of the datastore and of Kubernetes that cannot be read at present, by reason; what is known of them stays in force.",
		}, []string{"reason"}),
	}
	r.MustRegister(b.gauge)
	for reason := range remedy {
		b.gauge.WithLabelValues(string(reason)).Set(0)
	}
	return b
}

// Tell notes that something fails, or with nil that it no longer does.
func (b *Board) Tell(what string, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	was, failed := b.failing[what]
	if err == nil {
		if !failed {
			return
		}
		delete(b.failing, what)
		b.gauge.WithLabelValues(string(was.reason)).Dec()
	} else {
		now := failure{ReasonOf(err), err}
		b.failing[what] = now
		if failed && was.reason == now.reason {
			return
		}
		if failed {
			b.gauge.WithLabelValues(string(was.reason)).Dec()
		}
		b.gauge.WithLabelValues(string(now.reason)).Inc()
	}
	if b.timer == nil {
		b.timer = time.AfterFunc(settle, b.publish)
	}
}

// Until does something until it succeeds, telling why it does not. The error is that of ctx.
func (b *Board) Until(ctx context.Context, what string, do func(context.Context) error) error {
	wait := backoff.Backoff{Min: 200 * time.Millisecond, Max: 10 * time.Second}
	for {
		one, cancel := context.WithTimeout(ctx, attempt)
		err := do(one)
		cancel()
		b.Tell(what, err)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err := wait.Wait(ctx); err != nil {
			return err
		}
	}
}

// How often Keep looks, and how long an answer may take.
const (
	keepEvery = 5 * time.Second
	keepWait  = 5 * time.Second
)

// Keep asks whether something answers until ctx ends, and tells if it does not. A watch of etcd waits in silence, also for a server
// that is frozen or gone: nothing fails that anybody would tell of.
func (b *Board) Keep(ctx context.Context, what string, answers func(context.Context) error) error {
	tick := time.NewTicker(keepEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		one, cancel := context.WithTimeout(ctx, keepWait)
		err := answers(one)
		cancel()
		if ctx.Err() == nil {
			b.Tell(what, err)
		}
	}
}

// publish tells people what has changed.
func (b *Board) publish() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.timer = nil
	reasons, text, example := b.summary()
	if text != b.noted {
		b.noted = text
		b.note(text)
	}
	if slices.Equal(reasons, b.told) { // kinds that come and go for the same reason are no news
		return
	}
	b.told = reasons
	if len(reasons) == 0 {
		b.log.Info("everything can be read again")
		return
	}
	b.log.Warn("part of the cluster's state cannot be read, trying again; what is known stays in force", "why", text, "error", example)
}

// summary says what fails, by reason, with one of the errors. Of servers that are away it names no kinds: all of theirs are.
func (b *Board) summary() (reasons []Reason, text string, example error) {
	by := map[Reason][]string{}
	for _, what := range slices.Sorted(maps.Keys(b.failing)) {
		f := b.failing[what]
		by[f.reason] = append(by[f.reason], what)
		example = f.err
	}
	var parts []string
	reasons = slices.Sorted(maps.Keys(by))
	for _, reason := range reasons {
		part := string(reason) + ": " + strings.ReplaceAll(remedy[reason], processName, b.process)
		if reason != Unreachable && reason != Unauthorized {
			part += " (" + strings.Join(by[reason], ", ") + ")"
		}
		parts = append(parts, part)
	}
	return reasons, strings.Join(parts, "; "), example
}
