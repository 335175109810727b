package client

import (
	"fmt"
	"log/slog"
	"net"
	"strings"

	"github.com/muslin-net/muslin/internal/rpc"
)

// Where the processes of a node find its certificate, which calico-node gets and renews. It lies in memory: a key on a disk
// outlives the node's membership.
const (
	DefaultCA   = "/var/run/calico/pki/ca.crt"
	DefaultCert = "/var/run/calico/pki/tls.crt"
	DefaultKey  = "/var/run/calico/pki/tls.key"
)

// Ports of typha, where nothing else is said.
const (
	defaultPort       = "5473"
	defaultEnrollPort = "5474"
)

// Settings say where typha is and by which certificate a node shows who it is. All processes of a node have them in common,
// with the names that felix has in Calico's manifests; package daemon makes flags of them.
type Settings struct {
	Addresses []string `flag:"typha" env:"FELIX_TYPHAADDR" usage:"addresses of typha, host:port, separated by commas; without any the service counts"`
	Service   string   `flag:"typha-service" env:"FELIX_TYPHAK8SSERVICENAME" default:"calico-typha" usage:"service of typha in this pod's namespace, whose address Kubernetes puts into the environment"`
	TyphaName string   `flag:"typha-name" env:"FELIX_TYPHACN" default:"typha" usage:"name in typha's certificate"`
	CA        string   `flag:"ca" env:"FELIX_TYPHACAFILE" default:"/var/run/calico/pki/ca.crt" usage:"CA certificate, PEM"`
	Cert      string   `flag:"cert" env:"FELIX_TYPHACERTFILE" default:"/var/run/calico/pki/tls.crt" usage:"this node's certificate, PEM"`
	Key       string   `flag:"key" env:"FELIX_TYPHAKEYFILE" default:"/var/run/calico/pki/tls.key" usage:"its key, PEM"`
}

// Files are those of the settings.
func (s Settings) Files() rpc.Files { return rpc.Files{CA: s.CA, Cert: s.Cert, Key: s.Key} }

// Config is a client's, for the processes of a node. Certificates in the place where calico-node puts them are waited for;
// others have to be there.
func (s Settings) Config(node string, lookupEnv func(string) (string, bool), log *slog.Logger) (Config, error) {
	addresses, err := s.Typhas(lookupEnv)
	if err != nil {
		return Config{}, err
	}
	return Config{
		Addresses: addresses, ServerName: s.TyphaName, Files: s.Files(), Await: s.Cert == DefaultCert, Node: node, Log: log,
	}, nil
}

// Typhas are the addresses of typha for its nodes.
func (s Settings) Typhas(lookupEnv func(string) (string, bool)) ([]string, error) {
	if len(s.Addresses) > 0 {
		return s.Addresses, nil
	}
	return s.ofService(lookupEnv, "CALICO_TYPHA", defaultPort)
}

// Enrollers are the addresses at which typha enrols nodes.
func (s Settings) Enrollers(lookupEnv func(string) (string, bool)) ([]string, error) {
	if len(s.Addresses) == 0 {
		return s.ofService(lookupEnv, "ENROLL", defaultEnrollPort)
	}
	out := make([]string, len(s.Addresses))
	for i, a := range s.Addresses {
		host, _, err := net.SplitHostPort(a)
		if err != nil {
			return nil, fmt.Errorf("setting typha: %q is not of the form host:port", a)
		}
		out[i] = net.JoinHostPort(host, defaultEnrollPort)
	}
	return out, nil
}

// ofService reads the variables that Kubernetes sets for each service of a container's namespace.
func (s Settings) ofService(lookupEnv func(string) (string, bool), port, otherwise string) ([]string, error) {
	service := s.Service
	if service == "" || service == "none" { // in Calico: no typha; here there always is one
		service = "calico-typha"
	}
	prefix := strings.ToUpper(strings.ReplaceAll(service, "-", "_")) + "_SERVICE_"
	host, _ := lookupEnv(prefix + "HOST")
	if host == "" {
		return nil, fmt.Errorf("no address of typha is given, and the environment has no %sHOST for the service %q: "+
			"see that the service is in this pod's namespace and was made before this container started (then start it again), or set FELIX_TYPHAADDR", prefix, service)
	}
	if number, _ := lookupEnv(prefix + "PORT_" + port); number != "" {
		otherwise = number
	}
	return []string{net.JoinHostPort(host, otherwise)}, nil
}
