// Package registrar tells kubelet of the CSI driver: kubelet finds the registrar's socket in its directory of plugins, asks it
// for the driver's name and socket, and says how it went (k8s.io/kubelet/pkg/apis/pluginregistration/v1). It holds nothing, and
// needs no privilege but to make a socket in that directory.
package registrar

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	registration "k8s.io/kubelet/pkg/apis/pluginregistration/v1"

	"github.com/muslin-net/muslin/internal/rpc"
)

// answerWithin bounds how long the driver may take to say its name.
const answerWithin = 5 * time.Second

// Config is what a registrar is told.
type Config struct {
	Driver    string // the driver's socket, as the registrar sees it
	Endpoint  string // the same socket, as kubelet sees it
	Directory string // kubelet's directory of plugins, as the registrar sees it
	Log       *slog.Logger
	// Registered is called with what kubelet says: nothing, or why it did not take the driver. nil: nobody asks.
	Registered func(why string)
}

// Run waits for the driver, then offers it to kubelet until ctx ends. When it ends, kubelet takes the driver for gone.
func Run(ctx context.Context, c Config) error {
	name, err := ask(ctx, c.Driver)
	if err != nil || ctx.Err() != nil {
		return err
	}
	l, err := listen(filepath.Join(c.Directory, name+"-reg.sock"))
	if err != nil {
		return err
	}
	c.Log.Info("offering the driver to kubelet", "driver", name, "endpoint", c.Endpoint, "socket", l.Addr().String())
	g := rpc.NewServer(nil)
	registration.RegisterRegistrationServer(g, offer{name: name, config: c})
	stop := context.AfterFunc(ctx, g.Stop)
	defer stop()
	return g.Serve(l)
}

// ask asks the driver for its name, as long as it takes to start.
func ask(ctx context.Context, socket string) (string, error) {
	conn, err := rpc.DialUnix(socket)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	for ctx.Err() == nil {
		within, cancel := context.WithTimeout(ctx, answerWithin)
		info, err := csi.NewIdentityClient(conn).GetPluginInfo(within, &csi.GetPluginInfoRequest{}, grpc.WaitForReady(true))
		cancel()
		switch name := info.GetName(); {
		case err != nil:
			continue
		case name == "" || filepath.Base(name) != name:
			return "", fmt.Errorf("the driver at %s says that its name is %q, which cannot be", socket, name)
		default:
			return name, nil
		}
	}
	return "", nil
}

// listen opens kubelet's way to the registrar. Kubelet takes every socket that appears in its directory for a plugin, so
// that it must not appear under another name first.
func listen(path string) (net.Listener, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("socket %s of a registrar that is gone: %w", path, err)
	}
	l, err := net.Listen("unix", path) // its name goes when it is closed, which tells kubelet
	if err != nil {
		return nil, fmt.Errorf("socket %s: %w; mount kubelet's directory plugins_registry there", path, err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// offer answers kubelet.
type offer struct {
	registration.UnimplementedRegistrationServer
	name   string
	config Config
}

// GetInfo tells which driver is offered, and where it is.
func (o offer) GetInfo(context.Context, *registration.InfoRequest) (*registration.PluginInfo, error) {
	return &registration.PluginInfo{
		Type: registration.CSIPlugin, Name: o.name, Endpoint: o.config.Endpoint, SupportedVersions: []string{"1.0.0"},
	}, nil
}

// NotifyRegistrationStatus takes note of what kubelet made of it. A driver that kubelet refused is offered again when the
// registrar is started anew; kubelet asks again by itself, too.
func (o offer) NotifyRegistrationStatus(_ context.Context, s *registration.RegistrationStatus) (*registration.RegistrationStatusResponse, error) {
	why := ""
	if s.GetPluginRegistered() {
		o.config.Log.Info("kubelet took the driver", "driver", o.name)
	} else {
		why = "kubelet refused the driver: " + s.GetError()
		o.config.Log.Error("kubelet refused the driver", "driver", o.name, "error", s.GetError())
	}
	if o.config.Registered != nil {
		o.config.Registered(why)
	}
	return &registration.RegistrationStatusResponse{}, nil
}
