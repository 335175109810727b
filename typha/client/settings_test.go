package client

import (
	"log/slog"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// Where typha is: as told, or where the service is that the environment knows.
func TestWhereTyphaIs(t *testing.T) {
	service := map[string]string{
		"CALICO_TYPHA_SERVICE_HOST": "10.96.0.7", "CALICO_TYPHA_SERVICE_PORT": "5473", "MY_TYPHA_SERVICE_HOST": "fd00::7",
		"MY_TYPHA_SERVICE_PORT_CALICO_TYPHA": "443", "MY_TYPHA_SERVICE_PORT_ENROLL": "444",
	}
	lookup := func(name string) (string, bool) { v, ok := service[name]; return v, ok }
	for name, c := range map[string]struct {
		settings      Settings
		typha, enroll []string
		err           string
	}{
		"service":         {Settings{Service: "calico-typha"}, []string{"10.96.0.7:5473"}, []string{"10.96.0.7:5474"}, ""},
		"none, as Calico": {Settings{Service: "none"}, []string{"10.96.0.7:5473"}, []string{"10.96.0.7:5474"}, ""},
		"unset":           {Settings{}, []string{"10.96.0.7:5473"}, []string{"10.96.0.7:5474"}, ""},
		"named ports":     {Settings{Service: "my-typha"}, []string{"[fd00::7]:443"}, []string{"[fd00::7]:444"}, ""},
		"told":            {Settings{Service: "my-typha", Addresses: []string{"a:1", "[fd00::1]:2"}}, []string{"a:1", "[fd00::1]:2"}, []string{"a:5474", "[fd00::1]:5474"}, ""},
		"no such service": {Settings{Service: "other"}, nil, nil, `no OTHER_SERVICE_HOST for the service "other"`},
	} {
		t.Run(name, func(t *testing.T) {
			typha, err := c.settings.Typhas(lookup)
			enroll, errEnroll := c.settings.Enrollers(lookup)
			if c.err != "" {
				require.ErrorContains(t, err, c.err)
				require.ErrorContains(t, errEnroll, c.err)
				return
			}
			require.NoError(t, err)
			require.NoError(t, errEnroll)
			require.Equal(t, c.typha, typha)
			require.Equal(t, c.enroll, enroll)
		})
	}
	_, err := Settings{Addresses: []string{"typha"}}.Enrollers(lookup)
	require.ErrorContains(t, err, `"typha" is not of the form host:port`)
}

// Certificates that calico-node is to bring are waited for; others have to be there.
func TestCertificatesAreAwaited(t *testing.T) {
	at := func(cert string) Settings {
		return Settings{Addresses: []string{"127.0.0.1:1"}, CA: filepath.Join(t.TempDir(), "ca.crt"), Cert: cert, Key: "k"}
	}
	cfg, err := at("/nonexistent/tls.crt").Config("n1", nil, slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	require.False(t, cfg.Await)
	_, err = New(cfg)
	require.ErrorContains(t, err, "--ca")

	cfg, err = at(DefaultCert).Config("n1", nil, slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	require.True(t, cfg.Await)
	c, err := New(cfg)
	require.NoError(t, err)
	defer c.Close()
	_, err = c.Register(t.Context(), Registration{ReadOnly: true})
	require.ErrorIs(t, err, ErrUnavailable)
	require.ErrorContains(t, err, "waiting for what calico-node brings")
}
