package daemon

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/pprof"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/sync/errgroup"
)

func newRegistry(name string) *prometheus.Registry {
	r := prometheus.NewRegistry()
	build := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "build_info", Help: "Always 1; which program this is, of which version.", ConstLabels: prometheus.Labels{"program": name, "version": Version()},
	}, func() float64 { return 1 })
	r.MustRegister(build, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return r
}

// web serves health, metrics and profiles.
type web struct {
	servers   []*http.Server
	listeners []net.Listener
}

// newWeb opens the listeners at once, so that a port in use is an error of the start.
func newWeb(cfg common, d *Daemon) (*web, error) {
	w := &web{}
	if cfg.Health != "" {
		mux := http.NewServeMux()
		mux.HandleFunc("GET /liveness", d.Health.serve(func(live, _ bool) bool { return live }))
		mux.HandleFunc("GET /readiness", d.Health.serve(func(_, ready bool) bool { return ready }))
		mux.HandleFunc("GET /healthz", d.Health.serve(func(live, _ bool) bool { return live }))
		mux.Handle("GET /metrics", promhttp.HandlerFor(d.Metrics, promhttp.HandlerOpts{}))
		if err := w.add("health", cfg.Health, mux); err != nil {
			return nil, err
		}
	}
	if cfg.Metrics != "" {
		mux := http.NewServeMux()
		mux.Handle("GET /metrics", promhttp.HandlerFor(d.Metrics, promhttp.HandlerOpts{}))
		if err := w.add("metrics", cfg.Metrics, mux); err != nil {
			w.close()
			return nil, err
		}
	}
	if cfg.PprofPort != 0 {
		mux := http.NewServeMux()
		mux.HandleFunc("/debug/pprof/", pprof.Index)
		mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
		mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
		if err := w.add("pprof-port", net.JoinHostPort("127.0.0.1", strconv.Itoa(cfg.PprofPort)), mux); err != nil {
			w.close()
			return nil, err
		}
	}
	return w, nil
}

func (w *web) add(setting, address string, handler http.Handler) error {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return fmt.Errorf("setting %s: cannot listen on %s: %w; choose a free address", setting, address, err)
	}
	w.listeners = append(w.listeners, l)
	w.servers = append(w.servers, &http.Server{Handler: handler, ReadHeaderTimeout: 5 * time.Second})
	return nil
}

func (w *web) run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	for i, s := range w.servers {
		group.Go(func() error {
			if err := s.Serve(w.listeners[i]); !errors.Is(err, http.ErrServerClosed) {
				return err
			}
			return nil
		})
	}
	group.Go(func() error {
		<-ctx.Done()
		w.close()
		return nil
	})
	return group.Wait()
}

func (w *web) close() {
	for i, s := range w.servers {
		s.Close()
		w.listeners[i].Close()
	}
}
