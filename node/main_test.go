package main

import (
	"context"
	"flag"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/internal/loopback"
	"github.com/muslin-net/muslin/typha/client"
)

// call runs calico-node with an environment, written as "NAME=value NAME=value".
func call(t *testing.T, environment string, args ...string) error {
	t.Helper()
	for pair := range strings.FieldsSeq(environment) {
		name, value, _ := strings.Cut(pair, "=")
		t.Setenv(name, value)
	}
	cfg, err := parse(args, os.LookupEnv)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	return run(ctx, cfg)
}

// Flags have one dash, as in Calico's manifests, or two; what they leave open the environment says.
func TestSettings(t *testing.T) {
	none := func(string) (string, bool) { return "", false }
	cfg, err := parse([]string{"-felix-live", "--bird-ready", "-drain-wait=5s", "-typha", "a:1,b:2"}, none)
	require.NoError(t, err)
	require.True(t, cfg.FelixLive && cfg.BirdReady && !cfg.Startup)
	require.Equal(t, 5*time.Second, cfg.DrainWait)
	require.Equal(t, []string{"a:1", "b:2"}, cfg.Addresses)
	require.Equal(t, client.DefaultCert, cfg.Cert)
	require.Equal(t, "localhost:9099", cfg.felixHealth())

	env := map[string]string{"FELIX_HEALTHPORT": "9199", "FELIX_TYPHAADDR": "c:3", "FELIX_TYPHACAFILE": "/ca", "ENROLL_TOKENFILE": "/token", "FELIX_HEALTHHOST": ""}
	cfg, err = parse([]string{"-typha=d:4"}, func(name string) (string, bool) { v, ok := env[name]; return v, ok })
	require.NoError(t, err)
	require.Equal(t, []string{"d:4"}, cfg.Addresses)
	require.Equal(t, "/ca", cfg.CA)
	require.Equal(t, "/token", cfg.Enrol.Token)
	require.Equal(t, "localhost:9199", cfg.felixHealth(), "what is set to nothing is not set")

	for _, bad := range [][]string{{"-felix"}, {"startup"}, {"-drain-wait=long"}} {
		_, err := parse(bad, none)
		require.Error(t, err)
		require.NotContains(t, err.Error(), "\n")
	}
	_, err = parse([]string{"-h"}, none)
	require.ErrorIs(t, err, flag.ErrHelp)
}

// Probes of bird pass where there is none to be, so that manifests may keep them when the backend changes.
func TestProbes(t *testing.T) {
	health := httptest.NewServer(http.NotFoundHandler())
	defer health.Close()
	at := strings.TrimPrefix(health.URL, "http://")
	nobody := loopback.Address()
	for environment, fails := range map[string]bool{
		"CALICO_NETWORKING_BACKEND=bird BIRD_HEALTHADDR=" + nobody:  true,
		"CALICO_NETWORKING_BACKEND=bird BIRD_HEALTHADDR=" + at:      true,
		"CALICO_NETWORKING_BACKEND=vxlan BIRD_HEALTHADDR=" + nobody: false,
		"CALICO_NETWORKING_BACKEND=none BIRD_HEALTHADDR=" + nobody:  false,
		"CALICO_NETWORKING_BACKEND=gobgp":                           true,
	} {
		err := call(t, environment, "-bird-live", "-bird-ready")
		require.Equal(t, fails, err != nil, "%s: %v", environment, err)
	}
	require.ErrorContains(t, call(t, "", "-felix-ready", "-felix-health", nobody), "is it running on this node?")
}

func TestMistakes(t *testing.T) {
	dir := t.TempDir()
	where := []string{"-lib-dir", dir, "-node", "n1"}
	require.ErrorContains(t, call(t, ""), "nothing was asked for")
	require.ErrorContains(t, call(t, "CALICO_STARTUP_LOGLEVEL=loud", "-v"), `"loud" is not a severity`)
	t.Setenv("CALICO_STARTUP_LOGLEVEL", "")
	require.ErrorContains(t, call(t, "", append(where, "-startup")...), "no CALICO_TYPHA_SERVICE_HOST for the service \"calico-typha\"")
	require.ErrorContains(t, call(t, "CALICO_TYPHA_SERVICE_HOST=127.0.0.1 IP=here", append(where, "-startup")...), "environment variable IP", "what needs no typha is said first")
	require.ErrorContains(t, call(t, "IP=10.0.0.1/24", append(where, "-startup", "-cert", filepath.Join(dir, "tls.crt"))...), "nor a token to get one with")

	// preStop does not hold felix up, nor fail, whatever is wrong.
	require.NoError(t, call(t, "CALICO_TYPHA_SERVICE_PORT_CALICO_TYPHA=1", append(where, "-shutdown")...))
	require.NoError(t, call(t, "CALICO_NETWORKING_BACKEND=none", append(where, "-shutdown")...))
}
