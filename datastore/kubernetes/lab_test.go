//go:build lab

package kubernetes_test

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/yaml"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/datastore"
	"github.com/muslin-net/muslin/datastore/conformance"
	"github.com/muslin-net/muslin/datastore/kubernetes"
	"github.com/muslin-net/muslin/integration/k8s"
)

// Groups of custom resources.
const (
	native  = "projectcalico.org/v3"
	classic = "crd.projectcalico.org/v1"
)

// control starts a control plane.
func control(t *testing.T) *k8s.Server {
	ctx, cancel := context.WithTimeout(t.Context(), 25*time.Minute) // the first time it is built
	defer cancel()
	s, err := k8s.Start(ctx, t.TempDir(), func(line string) { t.Log(line) })
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.Stop()) })
	return s
}

// patient bounds what waits for a control plane.
func patient(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// apply creates what is in YAML files, and waits until the server serves a group.
func apply(t *testing.T, s *k8s.Server, group, pattern string) {
	t.Helper()
	ctx := patient(t)
	files, err := filepath.Glob(pattern)
	require.NoError(t, err)
	require.NotEmpty(t, files, pattern)
	for _, f := range files {
		text, err := os.ReadFile(f)
		require.NoError(t, err)
		for document := range strings.SplitSeq(string(text), "\n---\n") {
			var body map[string]any
			require.NoError(t, yaml.Unmarshal([]byte(document), &body))
			if body == nil {
				continue
			}
			require.NoError(t, s.Create(ctx, "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", body))
		}
	}
	served(t, open(t, s, group))
}

// served waits until the server serves all kinds.
func served(t *testing.T, c datastore.Client) {
	t.Helper()
	ctx := patient(t)
	var err error
	require.Eventually(t, func() bool {
		for _, k := range api.Kinds() {
			if k.Name == "LiveMigration" {
				continue
			}
			if _, err = c.List(ctx, k.Name, datastore.ListOptions{}); err != nil {
				return false
			}
		}
		return true
	}, time.Minute, 50*time.Millisecond, "%v", err)
}

func config(s *k8s.Server, group string) kubernetes.Config {
	return kubernetes.Config{REST: s.Config(k8s.Admin), APIGroup: group, PageSize: 100, Logger: slog.New(slog.DiscardHandler)}
}

func open(t *testing.T, s *k8s.Server, group string) datastore.Client {
	t.Helper()
	return openWith(t, config(s, group))
}

func openWith(t *testing.T, cfg kubernetes.Config) datastore.Client {
	t.Helper()
	c, err := kubernetes.New(cfg)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, c.Close()) })
	return c
}

// namespace makes a namespace.
func namespace(t *testing.T, s *k8s.Server, name string, labels map[string]string) {
	t.Helper()
	require.NoError(t, s.Create(patient(t), "/api/v1/namespaces", map[string]any{"metadata": map[string]any{"name": name, "labels": labels}}))
}

// empty removes what tests leave.
func empty(t *testing.T, c datastore.Client) {
	t.Helper()
	ctx := patient(t)
	for _, kind := range []string{"GlobalNetworkSet", "NetworkSet", "IPAMBlock", "BlockAffinity", "IPAMHandle"} {
		l, err := c.List(ctx, kind, datastore.ListOptions{})
		require.NoError(t, err)
		for _, o := range l.Items {
			_, err := c.Delete(ctx, api.KeyOf(o), datastore.Precondition{})
			require.True(t, err == nil || errors.Is(err, datastore.ErrNotFound), "%v", err)
		}
	}
}

// TestConformance runs the suite of all backends on a real API server, with either group of custom resources.
func TestConformance(t *testing.T) {
	s := control(t)
	for _, ns := range []string{"shop", "shop-b", "sho"} {
		namespace(t, s, ns, nil)
	}
	for _, l := range []struct{ group, crds string }{
		{native, "../../deploy/chart/crds/*.yaml"},
		{classic, "testdata/classic-crds.yaml"},
	} {
		apply(t, s, l.group, l.crds)
		t.Run(strings.ReplaceAll(l.group, "/", "_"), func(t *testing.T) {
			conformance.Run(t, func(t *testing.T) conformance.Subject {
				c := open(t, s, "") // the cluster says which group it has
				empty(t, c)
				return conformance.Subject{
					Client: c, DrawsIdentity: true, Forgets: true,
					Restart: func(t *testing.T) { restart(t, s) },
				}
			})
		})
	}
}

// restart kills the API server and starts it again.
func restart(t *testing.T, s *k8s.Server) {
	t.Helper()
	require.NoError(t, s.KillAPI())
	require.NoError(t, s.StartAPI(patient(t)))
}

// fetch reads an object as the server has it.
func fetch(t *testing.T, s *k8s.Server, path string) map[string]any {
	t.Helper()
	conf := s.Config(k8s.Admin)
	client, err := rest.HTTPClientFor(conf)
	require.NoError(t, err)
	defer client.CloseIdleConnections()
	answer, err := client.Get(conf.Host + path)
	require.NoError(t, err)
	defer answer.Body.Close()
	require.Equal(t, http.StatusOK, answer.StatusCode, path)
	var o map[string]any
	require.NoError(t, json.NewDecoder(answer.Body).Decode(&o))
	return o
}
