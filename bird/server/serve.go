package server

import (
	"context"
	"log/slog"
	"time"

	"google.golang.org/grpc"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/muslin-net/muslin/bird/speaker"
	"github.com/muslin-net/muslin/internal/rpc"
)

// Serve serves gRPC on a unix socket that only root may use, until ctx ends.
func Serve(ctx context.Context, socket string, register func(grpc.ServiceRegistrar)) error {
	l, err := rpc.ListenUnix(socket)
	if err != nil {
		return err
	}
	g := rpc.NewServer(nil)
	register(g)
	stop := context.AfterFunc(ctx, g.Stop)
	defer stop()
	return g.Serve(l)
}

// Leveled returns a logger that writes where log does, at a level that can be set; it begins with log's own.
func Leveled(log *slog.Logger) (*slog.Logger, *slog.LevelVar) {
	level := &slog.LevelVar{}
	for _, l := range []slog.Level{slog.LevelError, slog.LevelWarn, slog.LevelInfo, slog.LevelDebug} {
		if log.Enabled(context.Background(), l) {
			level.Set(l)
		}
	}
	return slog.New(leveled{log.Handler(), level}), level
}

type leveled struct {
	slog.Handler
	level *slog.LevelVar
}

func (l leveled) Enabled(_ context.Context, at slog.Level) bool { return at >= l.level.Level() }
func (l leveled) WithAttrs(a []slog.Attr) slog.Handler {
	return leveled{l.Handler.WithAttrs(a), l.level}
}

func (l leveled) WithGroup(name string) slog.Handler {
	return leveled{l.Handler.WithGroup(name), l.level}
}

// WatchdogPromise is how often the watchdog at least reports.
const WatchdogPromise = 30 * time.Second

// Part is where the watchdog reports to.
type Part interface {
	Ready()
	NotReady(reason string)
}

// Watchdog asks the speaker every second whether it does its work, and reports it. Sessions that are down do not count: they
// are conditions of peers, shown with their reasons by calicoctl node status.
func Watchdog(ctx context.Context, s *speaker.Speaker, part Part) error {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		if err := s.Ready(); err != nil {
			part.NotReady(err.Error())
		} else {
			part.Ready()
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// collector reports sums over sessions: series for each peer would grow with the square of the cluster.
type collector struct {
	speaker                                           *speaker.Speaker
	sessions, prefixes, announced, generation, loaded *prometheus.Desc
}

// NewCollector returns the metrics of a speaker.
func NewCollector(s *speaker.Speaker) prometheus.Collector {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("bird_"+name, help, labels, nil)
	}
	return &collector{
		speaker:    s,
		sessions:   desc("sessions", "Number of BGP sessions by state.", "state"),
		prefixes:   desc("prefixes", "Number of prefixes with a best path that was learned."),
		announced:  desc("announced_routes", "Number of this node's routes that are announced."),
		generation: desc("config_generation", "Generation of the running configuration."),
		loaded:     desc("config_timestamp_seconds", "When the configuration last changed."),
	}
}

func (c *collector) Describe(out chan<- *prometheus.Desc) { prometheus.DescribeByCollect(c, out) }

func (c *collector) Collect(out chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	counts := map[speaker.State]int{speaker.Established: 0}
	for _, state := range c.speaker.States() {
		counts[state]++
	}
	for state, n := range counts {
		gauge(c.sessions, float64(n), state.String())
	}
	st := c.speaker.Status()
	gauge(c.prefixes, float64(st.Prefixes))
	gauge(c.announced, float64(st.Announced))
	gauge(c.generation, float64(st.Generation))
	if !st.Configured.IsZero() {
		gauge(c.loaded, float64(st.Configured.Unix()))
	}
}
