package install_test

import (
	"context"
	"encoding/json"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/node/install"
)

func env(pairs map[string]string) func(string) string {
	return func(k string) string { return pairs[k] }
}

func config(t *testing.T) install.Config {
	t.Helper()
	dir := t.TempDir()
	c := install.Config{From: filepath.Join(dir, "from"), Bin: filepath.Join(dir, "opt/bin"), Conf: filepath.Join(dir, "etc/net.d")}
	require.NoError(t, os.MkdirAll(c.From, 0o755))
	for name, body := range map[string]string{"calico": "one", "calico-ipam": "two", "portmap": "three"} {
		require.NoError(t, os.WriteFile(filepath.Join(c.From, name), []byte(body), 0o600))
	}
	return c
}

// run installs, and returns what was left as it is.
func run(t *testing.T, c install.Config) []string {
	t.Helper()
	left, err := install.Run(c)
	require.NoError(t, err)
	return left
}

func write(t *testing.T, body string, path ...string) {
	t.Helper()
	require.NoError(t, os.WriteFile(filepath.Join(path...), []byte(body), 0o600))
}

func read(t *testing.T, path ...string) string {
	t.Helper()
	body, err := os.ReadFile(filepath.Join(path...))
	require.NoError(t, err)
	return string(body)
}

// Others have plugins of the same names: theirs stay, ours follow every upgrade and downgrade.
func TestOnlyOwnPluginsAreReplaced(t *testing.T) {
	c, err := install.Settings(config(t), env(nil))
	require.NoError(t, err)
	require.NoError(t, os.MkdirAll(c.Bin, 0o755))
	write(t, "a distribution's", c.Bin, "portmap")
	write(t, "another Calico's", c.Bin, "calico")
	require.Equal(t, []string{"portmap"}, run(t, c))
	require.Equal(t, "a distribution's", read(t, c.Bin, "portmap"))
	require.Equal(t, "one", read(t, c.Bin, "calico"))

	require.NoError(t, os.Remove(filepath.Join(c.Bin, "portmap")))
	require.Empty(t, run(t, c))
	for _, version := range []string{"four", "three"} { // up, and down again
		write(t, version, c.From, "portmap")
		require.Empty(t, run(t, c))
		require.Equal(t, version, read(t, c.Bin, "portmap"))
	}
	write(t, "a distribution's again", c.Bin, "portmap")
	write(t, "four", c.From, "portmap")
	require.Equal(t, []string{"portmap"}, run(t, c))
	c, err = install.Settings(c, env(map[string]string{"UPDATE_CNI_BINARIES": "true"}))
	require.NoError(t, err)
	require.Empty(t, run(t, c))
	require.Equal(t, "four", read(t, c.Bin, "portmap"))
}

// A configuration of another name, which the runtime would go on using, goes when it is named; nothing else does.
func TestTheConfigurationBeforeGoesIfNamed(t *testing.T) {
	c, err := install.Settings(config(t), env(map[string]string{"CNI_OLD_CONF_NAME": "05-calico.conf"}))
	require.NoError(t, err)
	require.NoError(t, os.MkdirAll(c.Conf, 0o755))
	for _, name := range []string{"05-calico.conf", "00-multus.conf", "calico-kubeconfig"} {
		write(t, "{}", c.Conf, name)
	}
	run(t, c)
	run(t, c)
	entries, err := os.ReadDir(c.Conf)
	require.NoError(t, err)
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	require.Equal(t, []string{"00-multus.conf", "10-calico.conflist", "calico-kubeconfig"}, names)
}

// As an init container it ends; with SLEEP it stays until it is told to go.
func TestAsAContainer(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	require.NoError(t, install.Main(t.Context(), config(t), env(nil), log))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- install.Main(ctx, config(t), env(map[string]string{"SLEEP": "true"}), log) }()
	cancel()
	require.NoError(t, <-done)
	require.ErrorContains(t, install.Main(t.Context(), config(t), env(map[string]string{"SLEEP": "long"}), log), "SLEEP")
	require.ErrorContains(t, install.Main(t.Context(), config(t), env(map[string]string{"CNI_MTU": "big"}), log), "CNI_MTU")
	require.ErrorContains(t, install.Main(t.Context(), config(t), env(map[string]string{"UPDATE_CNI_BINARIES": "some"}), log), "UPDATE_CNI_BINARIES")
}

func TestPluginsAndConfigurationAreInstalled(t *testing.T) {
	c, err := install.Settings(config(t), env(map[string]string{"KUBERNETES_NODE_NAME": "worker-1", "SKIP_CNI_BINARIES": "portmap, x"}))
	require.NoError(t, err)
	run(t, c)
	calico, err := os.Stat(filepath.Join(c.Bin, "calico"))
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o755), calico.Mode())
	require.NoFileExists(t, filepath.Join(c.Bin, "portmap"))
	body, err := os.ReadFile(filepath.Join(c.Conf, "10-calico.conflist"))
	require.NoError(t, err)
	var list struct {
		Plugins []struct {
			Type, Nodename string
			MTU            int
		}
	}
	require.NoError(t, json.Unmarshal(body, &list))
	require.Equal(t, "calico", list.Plugins[0].Type)
	require.Equal(t, "worker-1", list.Plugins[0].Nodename)
	require.Equal(t, "portmap", list.Plugins[1].Type)

	// Again: nothing is written, and whoever watches the files is left in peace.
	conf, err := os.Stat(filepath.Join(c.Conf, "10-calico.conflist"))
	require.NoError(t, err)
	run(t, c)
	for path, before := range map[string]os.FileInfo{filepath.Join(c.Bin, "calico"): calico, filepath.Join(c.Conf, c.Name): conf} {
		after, err := os.Stat(path)
		require.NoError(t, err)
		require.True(t, os.SameFile(before, after), path)
	}

	// A new version is another file: whoever runs the old one is not disturbed.
	require.NoError(t, os.WriteFile(filepath.Join(c.From, "calico"), []byte("newer"), 0o600))
	run(t, c)
	after, err := os.Stat(filepath.Join(c.Bin, "calico"))
	require.NoError(t, err)
	require.False(t, os.SameFile(calico, after))
	entries, err := os.ReadDir(c.Bin)
	require.NoError(t, err)
	require.Len(t, entries, 3, "nothing else is left there, but the record")

	c.Update = install.UpdateNone
	require.NoError(t, os.WriteFile(filepath.Join(c.From, "calico"), []byte("newest"), 0o600))
	run(t, c)
	body, err = os.ReadFile(filepath.Join(c.Bin, "calico"))
	require.NoError(t, err)
	require.Equal(t, "newer", string(body))
}

// Without plugins there must be no configuration: the runtime would call what is not there.
func TestTheConfigurationComesLast(t *testing.T) {
	c, err := install.Settings(config(t), env(nil))
	require.NoError(t, err)
	require.NoError(t, os.MkdirAll(filepath.Join(c.Bin, "calico"), 0o755)) // in the way
	_, err = install.Run(c)
	require.ErrorContains(t, err, "plugin calico")
	require.NoFileExists(t, filepath.Join(c.Conf, c.Name))
	c.From = filepath.Join(c.From, "nowhere")
	_, err = install.Run(c)
	require.ErrorContains(t, err, "programs to install")
}

func TestTemplates(t *testing.T) {
	e := env(map[string]string{"NODENAME": "n", "CNI_MTU": "1400", "ETCD_ENDPOINTS": "http://e:2379"})
	body, err := install.Conflist(`{"name": "net", "plugins": [{"type": "calico", "mtu": __CNI_MTU__, "nodename": "__KUBERNETES_NODE_NAME__",
		"etcd_endpoints": "__ETCD_ENDPOINTS__", "kubernetes": {"kubeconfig": "__KUBECONFIG_FILEPATH__", "k8s_auth_token": "__SERVICEACCOUNT_TOKEN__"}}]}`, e)
	require.NoError(t, err)
	require.JSONEq(t, `{"name": "net", "plugins": [{"type": "calico", "mtu": 1400, "nodename": "n", "etcd_endpoints": "http://e:2379",
		"kubernetes": {"kubeconfig": "/etc/cni/net.d/calico-kubeconfig", "k8s_auth_token": ""}}]}`, string(body))
	for template, says := range map[string]string{
		`{"name": "__SOMETHING__"}`:                "nobody knows what to put for __SOMETHING__",
		`{"name": "net", "plugins": [}`:            "is not valid JSON",
		`{"plugins": [{"type": "calico"}]}`:        `key "name" is missing`,
		`{"name": "net", "type": "calico"}`:        `it has no "plugins"`,
		`{"name": "net", "plugins": [{"mtu": 1}]}`: `a plugin has no "type"`,
	} {
		_, err := install.Conflist(template, e)
		require.ErrorContains(t, err, says, template)
	}
	_, err = install.Settings(install.Config{}, env(map[string]string{"CNI_CONF_NAME": "../x"}))
	require.ErrorContains(t, err, "is not the name of a file")
	_, err = install.Settings(install.Config{}, env(map[string]string{"CNI_NETWORK_CONFIG_FILE": "/nonexistent"}))
	require.ErrorContains(t, err, "CNI_NETWORK_CONFIG_FILE")
}
