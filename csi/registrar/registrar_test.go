package registrar_test

import (
	"context"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	registration "k8s.io/kubelet/pkg/apis/pluginregistration/v1"

	"github.com/muslin-net/muslin/csi/client"
	"github.com/muslin-net/muslin/csi/driver"
	"github.com/muslin-net/muslin/csi/registrar"
	"github.com/muslin-net/muslin/internal/rpc"
)

// patience is for what comes soon on any machine.
const patience = time.Minute

func TestKubeletIsToldOfTheDriver(t *testing.T) {
	dir, plugins := t.TempDir(), t.TempDir()
	said := make(chan string, 2)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 2)
	socket := filepath.Join(plugins, "csi.tigera.io-reg.sock")
	left, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"}) // as by SIGKILL
	require.NoError(t, err)
	left.SetUnlinkOnClose(false)
	require.NoError(t, left.Close())
	go func() {
		ended <- registrar.Run(ctx, registrar.Config{
			Driver: filepath.Join(dir, "csi.sock"), Endpoint: "/var/lib/kubelet/plugins/csi.tigera.io/csi.sock", Directory: plugins,
			Log: slog.New(slog.DiscardHandler), Registered: func(why string) { said <- why },
		})
	}()
	go func() {
		ended <- driver.New("worker-1", client.HomeAt(filepath.Join(dir, "home")), slog.New(slog.DiscardHandler)).Run(ctx, filepath.Join(dir, "csi.sock"))
	}()
	conn, err := rpc.DialUnix(socket)
	require.NoError(t, err)
	defer conn.Close()
	kubelet := registration.NewRegistrationClient(conn)
	within, stop := context.WithTimeout(t.Context(), patience)
	defer stop()
	info, err := kubelet.GetInfo(within, &registration.InfoRequest{}, grpc.WaitForReady(true))
	require.NoError(t, err)
	require.Equal(t, registration.CSIPlugin, info.GetType())
	require.Equal(t, driver.Name, info.GetName())
	require.Equal(t, "/var/lib/kubelet/plugins/csi.tigera.io/csi.sock", info.GetEndpoint())
	require.Equal(t, []string{"1.0.0"}, info.GetSupportedVersions())
	found, err := os.Stat(socket)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), found.Mode().Perm())

	_, err = kubelet.NotifyRegistrationStatus(within, &registration.RegistrationStatus{Error: "no such node"})
	require.NoError(t, err)
	require.Equal(t, "kubelet refused the driver: no such node", <-said)
	_, err = kubelet.NotifyRegistrationStatus(within, &registration.RegistrationStatus{PluginRegistered: true})
	require.NoError(t, err)
	require.Empty(t, <-said)

	cancel()
	require.NoError(t, <-ended)
	require.NoError(t, <-ended)
	require.NoFileExists(t, socket, "by which kubelet knows that the driver is gone")
}

func TestARegistrarThatIsStoppedBeforeTheDriverIsThere(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	require.NoError(t, registrar.Run(ctx, registrar.Config{Driver: filepath.Join(t.TempDir(), "csi.sock"), Log: slog.New(slog.DiscardHandler)}))
}

func TestADirectoryOfKubeletThatIsNotMounted(t *testing.T) {
	dir := t.TempDir()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() {
		_ = driver.New("worker-1", client.HomeAt(dir), slog.New(slog.DiscardHandler)).Run(ctx, filepath.Join(dir, "csi.sock"))
	}()
	err := registrar.Run(ctx, registrar.Config{
		Driver: filepath.Join(dir, "csi.sock"), Directory: filepath.Join(dir, "none"), Log: slog.New(slog.DiscardHandler),
	})
	require.ErrorContains(t, err, "mount kubelet's directory plugins_registry there")
}
