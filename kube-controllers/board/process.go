package board

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Level is how much is logged at a logSeverityScreen.
func Level(severity string) slog.Level {
	switch severity {
	case "Debug":
		return slog.LevelDebug
	case "Warning":
		return slog.LevelWarn
	case "Error", "Fatal", "Panic":
		return slog.LevelError
	case "None":
		return slog.LevelError + 100
	}
	return slog.LevelInfo
}

// MetricsPort serves metrics on the port of a configuration. It is one part of a process, whether that leads or not.
func MetricsPort(from prometheus.Gatherer, log *slog.Logger) Controller {
	return Controller{
		Name: "metrics",
		Part: func(s *Spec) any {
			if s.PrometheusMetricsPort == nil || *s.PrometheusMetricsPort == 0 {
				return nil
			}
			return *s.PrometheusMetricsPort
		},
		Run: func(ctx context.Context, s *Spec) error {
			mux := http.NewServeMux()
			mux.Handle("GET /metrics", promhttp.HandlerFor(from, promhttp.HandlerOpts{}))
			server := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
			listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", net.JoinHostPort("", strconv.Itoa(*s.PrometheusMetricsPort)))
			if err != nil {
				return err
			}
			log.Info("serving metrics", "address", listener.Addr().String())
			defer context.AfterFunc(ctx, func() { server.Close() })()
			if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
				return err
			}
			return ctx.Err()
		},
	}
}
