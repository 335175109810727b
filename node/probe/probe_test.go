package probe_test

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/internal/loopback"
	"github.com/muslin-net/muslin/node/probe"
)

func TestCheck(t *testing.T) {
	daemon := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/liveness":
			w.WriteHeader(http.StatusNoContent)
		case "/readiness":
			w.WriteHeader(http.StatusServiceUnavailable)
			_, _ = io.WriteString(w, "dataplane: not ready: typha has not sent the node's view\n")
		case "/slow":
			<-r.Context().Done()
		}
	}))
	defer daemon.Close()
	address := strings.TrimPrefix(daemon.URL, "http://")
	require.NoError(t, probe.Check(t.Context(), "felix", address, "/liveness"))
	require.NoError(t, probe.Check(t.Context(), "felix", address, "/healthy"))
	require.EqualError(t, probe.Check(t.Context(), "felix", address, "/readiness"),
		"felix is not well (503 Service Unavailable):\ndataplane: not ready: typha has not sent the node's view")

	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	require.ErrorContains(t, probe.Check(ctx, "felix", address, "/slow"), "felix does not answer on "+address)

	nobody := loopback.Address()
	err := probe.Check(t.Context(), "bird", nobody, "/liveness")
	require.ErrorContains(t, err, "bird does not answer on "+nobody)
	require.ErrorContains(t, err, "is it running on this node?")
	require.ErrorContains(t, probe.Check(t.Context(), "bird", "not an address", "/"), "bird: ")
}
