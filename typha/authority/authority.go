// Package authority is the identity of typhas that get theirs from the cluster: a certificate authority that all of them share,
// and a serving certificate of each, which it signs itself. Both lie in a directory of typha's own, in the files that package rpc
// reads anew for every connection, so that neither a new certificate nor another CA needs a restart, and no stream ends by it.
//
// It refuses to know where the CA is kept: package kube brings it from a Secret.
package authority

import (
	"bytes"
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
	"time"
)

const (
	// caLife is for how long a CA is made. It is replaced by hand (DESIGN.md), which nobody should have to do in a hurry.
	caLife = 10 * 365 * 24 * time.Hour
	// backdate is how long before their making certificates begin, since clocks may be behind.
	backdate = time.Hour
	// servingLife is for how long a serving certificate is made, from its beginning.
	servingLife = 24 * time.Hour
	// renewBefore is how long before its end a serving certificate is replaced.
	renewBefore = 8 * time.Hour
)

// CA is an authority. Certs may hold further certificates that are to be trusted beside that of the key: those of the CA before,
// or of the one to come.
type CA struct {
	Certs, Key []byte // PEM
}

// New makes a CA.
func New(now time.Time) (CA, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return CA{}, fmt.Errorf("making the CA's key: %w", err)
	}
	template := &x509.Certificate{
		Subject: pkix.Name{CommonName: "calico-ca"}, NotBefore: now.Add(-backdate), NotAfter: now.Add(caLife),
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, BasicConstraintsValid: true, IsCA: true, MaxPathLenZero: true,
	}
	cert, err := sign(template, template, key.Public(), key)
	if err != nil {
		return CA{}, fmt.Errorf("making the CA: %w", err)
	}
	text, err := encodeKey(key)
	return CA{Certs: cert, Key: text}, err
}

// Signer is the CA's key with the certificate of its own. The error says what is wrong with the CA.
func (c CA) Signer() (*x509.Certificate, crypto.Signer, error) {
	key, err := ParseKey(c.Key)
	if err != nil {
		return nil, nil, fmt.Errorf("key of the CA: %w", err)
	}
	for block, rest := pem.Decode(c.Certs); block != nil; block, rest = pem.Decode(rest) {
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, nil, fmt.Errorf("certificate of the CA: %w", err)
		}
		if public, ok := cert.PublicKey.(interface{ Equal(crypto.PublicKey) bool }); ok && public.Equal(key.Public()) {
			return cert, key, nil
		}
	}
	return nil, nil, errors.New("key of the CA: it belongs to none of the CA's certificates")
}

// Names are those that a serving certificate is for.
type Names struct {
	DNS []string
	IPs []netip.Addr
}

// Serving makes a serving certificate and its key, both PEM.
func (c CA) Serving(names Names, now time.Time) (cert, key []byte, err error) {
	parent, signer, err := c.Signer()
	if err != nil {
		return nil, nil, err
	}
	own, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("making typha's key: %w", err)
	}
	begin := now.Add(-backdate)
	template := &x509.Certificate{
		Subject: pkix.Name{CommonName: "typha"}, NotBefore: begin, NotAfter: begin.Add(servingLife), DNSNames: names.DNS,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, BasicConstraintsValid: true,
	}
	for _, ip := range names.IPs {
		template.IPAddresses = append(template.IPAddresses, net.IP(ip.AsSlice()))
	}
	if parent.NotAfter.Before(template.NotAfter) {
		template.NotAfter = parent.NotAfter
	}
	if cert, err = sign(template, parent, own.Public(), signer); err != nil {
		return nil, nil, fmt.Errorf("making typha's certificate: %w", err)
	}
	key, err = encodeKey(own)
	return cert, key, err
}

// due tells whether a serving certificate is to be replaced: it ends soon or has not begun, another CA signs by now, or it is no
// certificate.
func (c CA) due(cert []byte, now time.Time) bool {
	parent, _, err := c.Signer()
	if err != nil {
		return false // it cannot be replaced
	}
	block, _ := pem.Decode(cert)
	if block == nil {
		return true
	}
	have, err := x509.ParseCertificate(block.Bytes)
	return err != nil || have.CheckSignatureFrom(parent) != nil || !bytes.Equal(have.AuthorityKeyId, parent.SubjectKeyId) ||
		now.Before(have.NotBefore) || now.After(have.NotAfter.Add(-renewBefore))
}

func sign(template, parent *x509.Certificate, public crypto.PublicKey, signer crypto.Signer) ([]byte, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, err
	}
	template.SerialNumber = serial
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, signer)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), nil
}

func encodeKey(key *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

// ParseKey reads a key that signs, in any of the forms that tools write.
func ParseKey(text []byte) (crypto.Signer, error) {
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, errors.New("it is not PEM")
	}
	var key any
	var err error
	switch block.Type {
	case "EC PRIVATE KEY":
		key, err = x509.ParseECPrivateKey(block.Bytes)
	case "RSA PRIVATE KEY":
		key, err = x509.ParsePKCS1PrivateKey(block.Bytes)
	default:
		key, err = x509.ParsePKCS8PrivateKey(block.Bytes)
	}
	if err != nil {
		return nil, err
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, errors.New("it cannot sign")
	}
	return signer, nil
}
