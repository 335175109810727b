package rpc_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/muslin-net/muslin/internal/rpc"
)

// authority signs certificates for a test.
type authority struct {
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{dir: t.TempDir()}
	a.cert, a.key = a.sign(t, "ca", &x509.Certificate{IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign})
	return a
}

// sign makes a certificate and writes it, with its key, as name.pem and name-key.pem.
func (a *authority) sign(t *testing.T, name string, template *x509.Certificate) (*x509.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template.SerialNumber, err = rand.Int(rand.Reader, big.NewInt(1<<62))
	require.NoError(t, err)
	template.Subject = pkix.Name{CommonName: name}
	template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	parent, signer := a.cert, a.key
	if parent == nil {
		parent, signer = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
	require.NoError(t, err)
	cert, err := x509.ParseCertificate(der)
	require.NoError(t, err)
	body, err := x509.MarshalECPrivateKey(key)
	require.NoError(t, err)
	a.write(t, name+".pem", "CERTIFICATE", der)
	a.write(t, name+"-key.pem", "EC PRIVATE KEY", body)
	return cert, key
}

func (a *authority) write(t *testing.T, name, kind string, body []byte) {
	t.Helper()
	require.NoError(t, os.WriteFile(filepath.Join(a.dir, name), pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: body}), 0o600))
}

func (a *authority) files(name string) rpc.Files {
	at := func(f string) string { return filepath.Join(a.dir, f) }
	return rpc.Files{CA: at("ca.pem"), Cert: at(name + ".pem"), Key: at(name + "-key.pem")}
}

func (a *authority) client(t *testing.T, role, name string) rpc.Files {
	t.Helper()
	uri := &url.URL{Scheme: rpc.IdentityScheme, Host: role, Path: "/" + name}
	a.sign(t, role+"-"+name, &x509.Certificate{URIs: []*url.URL{uri}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	return a.files(role + "-" + name)
}

// echo answers with who asks.
type echo struct {
	grpc_health_v1.UnimplementedHealthServer
	asked chan rpc.Identity
}

func (e echo) Check(ctx context.Context, _ *grpc_health_v1.HealthCheckRequest) (*grpc_health_v1.HealthCheckResponse, error) {
	id, err := rpc.Peer(ctx)
	if err != nil {
		return nil, err
	}
	e.asked <- id
	return &grpc_health_v1.HealthCheckResponse{}, nil
}

// serve runs a server that trusts a, and returns its address and where it tells who asked.
func serve(t *testing.T, a *authority) (string, chan rpc.Identity) {
	t.Helper()
	a.sign(t, "server", &x509.Certificate{DNSNames: []string{"typha"}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}})
	config, err := rpc.ServerTLS(a.files("server"))
	require.NoError(t, err)
	s := rpc.NewServer(config)
	e := echo{asked: make(chan rpc.Identity, 1)}
	grpc_health_v1.RegisterHealthServer(s, e)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	go func() { _ = s.Serve(l) }()
	t.Cleanup(s.Stop)
	return l.Addr().String(), e.asked
}

func ask(t *testing.T, address string, files rpc.Files, serverName string) error {
	t.Helper()
	config, err := rpc.ClientTLS(files, serverName)
	require.NoError(t, err)
	conn, err := rpc.Dial(address, config)
	require.NoError(t, err)
	defer conn.Close()
	return call(conn)
}

func call(conn *grpc.ClientConn) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	_, err := grpc_health_v1.NewHealthClient(conn).Check(ctx, &grpc_health_v1.HealthCheckRequest{})
	return err
}

func TestAPeerIsWhoItsCertificateSays(t *testing.T) {
	a := newAuthority(t)
	address, asked := serve(t, a)
	require.NoError(t, ask(t, address, a.client(t, "node", "worker-1"), "typha"))
	require.Equal(t, rpc.Identity{Role: "node", Name: "worker-1"}, <-asked)
	require.NoError(t, ask(t, address, a.client(t, "operator", "ann"), "typha"))
	require.Equal(t, "operator/ann", (<-asked).String())
}

func TestStrangersAreRefused(t *testing.T) {
	a, other := newAuthority(t), newAuthority(t)
	address, _ := serve(t, a)

	stranger := other.client(t, "node", "worker-1")
	stranger.CA = a.files("").CA // trusts the server, is not trusted by it
	require.Equal(t, codes.Unavailable, status.Code(ask(t, address, stranger, "typha")))

	good := a.client(t, "node", "worker-1")
	require.ErrorContains(t, ask(t, address, good, "elsewhere"), "elsewhere", "the server's name is checked")
	good.CA = other.files("ca").CA
	require.ErrorContains(t, ask(t, address, good, "typha"), "unknown authority", "the server's signature is checked")

	a.sign(t, "nobody", &x509.Certificate{})
	require.Equal(t, codes.Unauthenticated, status.Code(ask(t, address, a.files("nobody"), "typha")), "a certificate without identity")
}

func TestARotatedCertificateIsUsedByTheNextConnection(t *testing.T) {
	a := newAuthority(t)
	address, asked := serve(t, a)
	files := a.client(t, "node", "before")
	require.NoError(t, ask(t, address, files, "typha"))
	require.Equal(t, "node/before", (<-asked).String())
	next := a.client(t, "node", "after")
	require.NoError(t, os.Rename(next.Cert, files.Cert))
	require.NoError(t, os.Rename(next.Key, files.Key))
	require.NoError(t, ask(t, address, files, "typha"))
	require.Equal(t, "node/after", (<-asked).String())
}

func TestMissingFilesAreNamed(t *testing.T) {
	a := newAuthority(t)
	files := a.client(t, "node", "n")
	empty := filepath.Join(t.TempDir(), "empty.pem")
	require.NoError(t, os.WriteFile(empty, nil, 0o600))
	for _, c := range []struct {
		spoil func(*rpc.Files)
		want  string
	}{
		{func(f *rpc.Files) { f.CA = "/nonexistent/ca.pem" }, "/nonexistent/ca.pem"},
		{func(f *rpc.Files) { f.Cert = "" }, "--cert"},
		{func(f *rpc.Files) { f.Key = f.CA }, f0(files)},
		{func(f *rpc.Files) { f.CA = f.Key }, "holds no PEM certificate"},
		{func(f *rpc.Files) { f.CA = empty }, "holds no PEM certificate"},
	} {
		bad := files
		c.spoil(&bad)
		_, err := rpc.ClientTLS(bad, "typha")
		require.ErrorContains(t, err, c.want)
		_, err = rpc.ServerTLS(bad)
		require.ErrorContains(t, err, c.want)
	}
}

func f0(f rpc.Files) string { return f.Cert }

func TestAUnixSocketIsRootsAloneAndReplacesADeadOne(t *testing.T) {
	path := filepath.Join(t.TempDir(), "run", "test.sock")
	l, err := rpc.ListenUnix(path)
	require.NoError(t, err)
	info, err := os.Stat(path)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), info.Mode().Perm())
	_, err = rpc.ListenUnix(path)
	require.ErrorContains(t, err, "another process serves it")

	require.NoError(t, l.Close()) // as by SIGKILL the file stays
	require.FileExists(t, path)
	l, err = rpc.ListenUnix(path)
	require.NoError(t, err)
	s := rpc.NewServer(nil)
	grpc_health_v1.RegisterHealthServer(s, echo{})
	go func() { _ = s.Serve(l) }()
	defer s.Stop()
	conn, err := rpc.DialUnix(path)
	require.NoError(t, err)
	defer conn.Close()
	require.Equal(t, codes.Unauthenticated, status.Code(call(conn)), "over a socket nobody has an identity")
}
