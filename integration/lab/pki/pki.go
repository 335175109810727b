// Package pki is a development certificate authority: it makes the certificates of a lab, so that the real binaries
// speak mutual TLS with real identities from the first start. It is for labs and tests. Keys lie unencrypted on disk,
// nothing is revoked, and everything is valid for ten days.
//
// Roles are URI names in the certificate: muslin://node/<name> for a node, muslin://operator/<name> for a person.
package pki

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"time"
)

// Lifetime of each certificate, and how far before its making it begins (clocks of nodes may be behind).
const (
	Lifetime  = 10 * 24 * time.Hour
	BackDated = time.Hour
)

// CA signs certificates. Its key lives in memory and, after Write, in a file.
type CA struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// Pair is a certificate and its key, both PEM. CA is the certificate that signed it.
type Pair struct {
	CA, Cert, Key []byte
}

// Role says who may use a certificate, and for which side of a connection.
type Role struct {
	CommonName string
	Group      string       // what Kubernetes takes for a group of the user CommonName; may be empty
	URI        string       // muslin://node/<name>, muslin://operator/<name> or empty
	DNS        []string     // names a client may verify
	IPs        []netip.Addr // addresses a client may verify
	Server     bool         // may serve; a client certificate otherwise
}

// Node is the role of a node's processes.
func Node(name string) Role { return Role{CommonName: name, URI: "muslin://node/" + name} }

// Operator is the role of a person's calicoctl.
func Operator(name string) Role { return Role{CommonName: name, URI: "muslin://operator/" + name} }

// Typha is the role of a typha that is reached at these addresses.
func Typha(ips ...netip.Addr) Role {
	return Role{CommonName: "typha", DNS: []string{"typha", "localhost"}, IPs: ips, Server: true}
}

// NewCA makes an authority with a fresh ECDSA P-256 key.
func NewCA(name string, now time.Time) (*CA, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make the CA key: %w", err)
	}
	tmpl := &x509.Certificate{
		Subject:               pkix.Name{CommonName: name},
		NotBefore:             now.Add(-BackDated),
		NotAfter:              now.Add(Lifetime),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true,
	}
	cert, err := sign(tmpl, tmpl, key.Public(), key)
	if err != nil {
		return nil, err
	}
	return &CA{cert: cert, key: key}, nil
}

// Issue makes a key and a certificate for a role.
func (ca *CA) Issue(role Role, now time.Time) (Pair, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return Pair{}, fmt.Errorf("make a key for %s: %w", role.CommonName, err)
	}
	tmpl := &x509.Certificate{
		Subject:     role.subject(),
		NotBefore:   now.Add(-BackDated),
		NotAfter:    now.Add(Lifetime),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		DNSNames:    role.DNS,
	}
	if role.Server {
		tmpl.ExtKeyUsage = append(tmpl.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
	}
	for _, ip := range role.IPs {
		tmpl.IPAddresses = append(tmpl.IPAddresses, net.IP(ip.AsSlice()))
	}
	if role.URI != "" {
		u, err := url.Parse(role.URI)
		if err != nil {
			return Pair{}, fmt.Errorf("role %q is no URI: %w", role.URI, err)
		}
		tmpl.URIs = []*url.URL{u}
	}
	cert, err := sign(tmpl, ca.cert, key.Public(), ca.key)
	if err != nil {
		return Pair{}, fmt.Errorf("sign for %s: %w", role.CommonName, err)
	}
	keyPEM, err := encodeKey(key)
	if err != nil {
		return Pair{}, err
	}
	return Pair{CA: ca.CertPEM(), Cert: encode("CERTIFICATE", cert.Raw), Key: keyPEM}, nil
}

func (r Role) subject() pkix.Name {
	name := pkix.Name{CommonName: r.CommonName}
	if r.Group != "" {
		name.Organization = []string{r.Group}
	}
	return name
}

// CertPEM is the authority's own certificate.
func (ca *CA) CertPEM() []byte { return encode("CERTIFICATE", ca.cert.Raw) }

// Write stores the authority as ca.crt and ca.key (0600) in dir.
func (ca *CA) Write(dir string) error {
	key, err := encodeKey(ca.key)
	if err != nil {
		return err
	}
	return errors.Join(
		os.WriteFile(filepath.Join(dir, "ca.crt"), ca.CertPEM(), 0o644),
		os.WriteFile(filepath.Join(dir, "ca.key"), key, 0o600))
}

// Write stores the pair as ca.crt, tls.crt and tls.key (0600) in dir, which is made if missing.
func (p Pair) Write(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	return errors.Join(
		os.WriteFile(filepath.Join(dir, "ca.crt"), p.CA, 0o644),
		os.WriteFile(filepath.Join(dir, "tls.crt"), p.Cert, 0o644),
		os.WriteFile(filepath.Join(dir, "tls.key"), p.Key, 0o600))
}

func sign(tmpl, parent *x509.Certificate, pub crypto.PublicKey, key crypto.Signer) (*x509.Certificate, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, err
	}
	tmpl.SerialNumber = serial
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, pub, key)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

func encodeKey(key *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return encode("PRIVATE KEY", der), nil
}

func encode(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}
