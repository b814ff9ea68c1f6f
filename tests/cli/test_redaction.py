"""What counts as a secret in a bundle: of every kind that could be thought of, wherever it stands; and what does not."""

from __future__ import annotations

import json
import time

import pytest

from pivotd.cli import redaction

SECRET = "hunter2-Qx7"
TEXTS = (
    "curl -u bob:§ https://h/x",
    "curl -ubob:§ https://h/x",
    "curl --user bob:§ x",
    "curl --user=bob:§ x",
    "curl -u 'bob:§ y' x",
    "curl --proxy-user a:§ x",
    "curl -sSu bob:§ x",
    "curl -U a:§",
    "etcdctl --user root:§ get x",
    '["etcdctl", "--user", "root:§", "get"]',
    '["curl","-u","bob:§"]',
    '[\\"curl\\",\\"-u\\",\\"bob:§\\"]',
    "sshpass -p § ssh h",
    "sshpass -p§ ssh h",
    "sshpass -p '§ y' ssh h",
    '["sshpass", "-p", "§", "ssh"]',
    "/usr/bin/sshpass -v -p § ssh h",
    "mysql -uroot -p§ db",
    "mysqldump --user=root -p§",
    "mariadb -p§",
    "mongosh -u a -p §",
    "docker login -u bob -p § reg",
    "podman login -p § reg",
    "ldapsearch -x -D cn=a -w § -b x",
    "redis-cli -h h -a § ping",
    "mosquitto_pub -u a -P § -t x",
    "ipmitool -I lanplus -U root -P § power off",
    "fence_ipmilan -a h -l u -p § -o off",
    "sqlcmd -U sa -P §",
    "7z x -p§ a.7z",
    "zip -P § a",
    "unzip -P § a",
    "smbclient //h/s -U bob%§",
    "smbclient //h/s -U 'DOM\\bob%§'",
    "lftp -u bob,§ h",
    "xfreerdp /u:bob /p:§ /v:h",
    "snmpget -v3 -A § -X § h",
    "snmpget -v2c -c § h x",
    "openssl rsa -passin pass:§ -in k",
    "openssl enc -k §",
    "openssl x -pass pass:§",
    "virsh secret-set-value 1234 §",
    "virsh secret-set-value --secret 1234 --base64 §",
    "virsh set-user-password web1 root §",
    "htpasswd -bB f bob §",
    "echo § | sudo -S x",
    "echo -n '§' | cryptsetup open /dev/x y",
    "printf '%s' § | cryptsetup luksOpen x y -",
    "echo root:§ | chpasswd",
    "cryptsetup open x y <<< §",
    "printf root:§ | chpasswd",
    "-H 'Authorization: Token §' x",
    '-H "X-Vault-Token: §"',
    "Cookie: session=§; x=1",
    "Set-Cookie: sid=§; Path=/",
    "curl -b 'sid=§' x",
    'Authorization: Digest username="a", response="§"',
    "X-API-Key: §",
    "Proxy-Authorization: Negotiate §",
    "https://h/x?sig=§&x=1",
    "https://h/x?X-Amz-Signature=§&x=1",
    "https://h/x?access_token=§",
    "https://h/?code=1&jwt=§",
    "https://h/p?sessionid=§",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJodW50ZXIyIn0.§",
    "ghp_§abcdefghijklmnopqrstuvwx",
    "glpat-§abcdefgh",
    "xoxb-1-§",
    "hvs.§abcdefghijkl",
    "sk-§abcdefghijklmnopq",
    "proxy bob:§@proxy:3128 x",
    "http_proxy=bob:§@proxy:3128",
    "netroot=iscsi:bob:§@10.0.0.1::3260::iqn",
    "//bob:§@h/share",
    "scp bob:§@h:/x",
    "LDAP_BIND_PW=§",
    "bindpw §",
    "  rootpw §",
    "requirepass §",
    "machine h login bob password §",
    "DB_PW: §",
    "pin=§",
    "psk=§",
    "wpa_psk=§",
    "PresharedKey = §",
    "sharedKey: §",
    "encryptionKey=§",
    "userPw=§",
    "dbPass: §",
    "creds=§",
    "cred: §",
    "passcode=§",
    "otp=§",
    "passwords: §",
    '{"tokens": ["§"]}',
    "secrets = ['§']",
    "community=§",
    "mysql_pass=§",
    "password: |\n  §\n  more\nx: 1",
    "token: >-\n    §\nx: 1",
    'password: "\n§"',
    "password='§",
    'password="§',
    "password=&§",
    "password=]§",
    "password=,§",
    'password=§"§',
    "password=a'§",
    "password= §",
    "password =\t§",
    "password:§",
    "password := §",
    "password => '§'",
    "'password' => '§'",
    "password==  §",
    "export PASSWORD=§",
    "set PASSWORD §",
    "password is §",
    'password "§"',
    "Password for bob: §",
    "password for root='§'",
    "IDENTIFIED BY '§'",
    "ALTER USER x WITH PASSWORD '§'",
    "set_password vnc §",
    "change vnc password §",
    "set_password spice § keep",
    '{"qom-type": "secret", "id": "s0", "data": "§"}',
    '{"data": "§", "qom-type": "secret"}',
    '{\\"qom-type\\": \\"secret\\", \\"data\\": \\"§\\"}',
    '-object \'{"qom-type":"secret","id":"s","data":"§"}\'',
    "-object secret,data=§,id=x",
    "-object secret,id=x,data='§ y'",
    "object_add secret,id=x,data=§",
    "-vnc :0,password=§",
    "-spice port=1,password=§,x=1",
    "<graphics type='vnc' port='1' passwd='§'/>",
    '<graphics type="spice" passwd="§"/>',
    "<password>§</password>",
    "<secret><value>§</value></secret>",
    "<bind pw='§'/>",
    "<key>§</key>",
    "<user password=\n'§'/>",
    "<passwd><![CDATA[§]]></passwd>",
    "type=11,value=io.systemd.credential:passwd.plaintext-password.root=§",
    "io.systemd.credential.binary:x=§",
    "systemd.set_credential=passwd.plaintext-password.root:§",
    "root:$6$abcdefgh$§abcdefghijklmn:1:",
    "$y$j9T$abc$§abcdefghijk",
    "{SSHA}§abcdefgh",
    "$2b$12$§abcdefghijklmn",
    "$argon2id$v=19$m=1$abc$§",
    "key AQBhunterhunterhunterhunterhunterhunte§==",
    "mount -o name=admin,secret=§ x",
    "mount -t cifs -o username=a,password=§",
    "mount -o user=a,pass=§,x",
    "MIIE§\n-----END PRIVATE KEY-----\nx",
    "-----BEGIN OPENSSH PRIVATE KEY-----\\n§\\n-----END OPENSSH PRIVATE KEY-----",
    "-----BEGIN PGP MESSAGE-----\n§",
    "PuTTY-User-Key-File-3: x\nPrivate-Lines: 1\n§\nPrivate-MAC: x",
    "AGE-SECRET-KEY-1§ABCDEFGH",
    "wget --http-password=§",
    "x --passwd=§",
    "x -password §",
    "x --pass §",
    "x --api-key=§",
    '["x", "--password", "§"]',
    "['x','--token','§']",
    '\\"--password\\", \\"§\\"',
    "x --auth bob:§",
    "x --auth-token=§",
    "x --bearer §",
    "--storepass §",
    "-storepass §",
    "--requirepass §",
    "--bindpw §",
    "--secret-id §",
    "--client-secret=§",
    "--access-key-secret §",
    "nmcli dev wifi connect x password §",
    "wpa_passphrase ssid §",
    "kinit <<< '§'",
    "gpg --batch --passphrase '§ y'",
    "--password\t§",
    "--password  '§'",
    "--pw §",
    "--psk §",
    '--password="§ y"',
    "--cookie 'x=§'",
    "-e PASSWORD=§",
    "--env=DB_PASSWORD=§",
    "-c 'password=§'",
    'Environment="A_PASSWORD=§\\" y"',
    "Environment='A_PASSWORD=§ y'",
    "Environment=A_PASSWORD='§ y'",
    'Environment="DATABASE_URL=postgres://a:§@h/x"',
    "Environment=A=1 B_PW=§",
    "SetCredentialEncrypted=x:\\\n § \\\n abc\nUser=x",
    "SetCredential=x:abc\\\n§\nUser=x",
    "AccountKey=§;EndpointSuffix=x",
    "SharedAccessSignature=§",
    "Server=h;Uid=a;Pwd=§;",
    "User ID=a;Password=§;x=1",
    "//h/x?user=a&pass=§&y=1",
    "amqp://a:§@h",
    "redis://:§@h",
    "https://§@h/x",
)
"""Each with § where a secret stands."""
HARMLESS = (
    "2026-11-23T09:00:00 host1 pivotd[7]: web1: disk0 switched in 5.1 ms; pivot 01M85YE52MQ9X1E8RH9KXH3657",
    "ExecStart=/opt/pivotd/bin/pivotd --config /etc/pivotd/pivotd.toml",
    "29 1 254:1 / /srv rw,relatime shared:1 - ext4 /dev/vda1 rw,errors=remount-ro",
    "docker run -u 1000:1000 -v /a:/b x",
    "rsync -av a:/x b:/y",
    "rbd:pool/image@snap",
    "give --password-file /etc/pivotd/etcd-password",
    'password_file = "/etc/pivotd/etcd-password"',
    "pivotctl copy web1 disk0=/new/web1.qcow2 --id move-42 --detach",
    "the sandbox hides /home: BindPaths=/home/images or ProtectHome=no",
    "unknown key 'stat_dir' in /etc/pivotd/pivotd.toml",
    "user@1000.service: Deactivated successfully",
    "-cpu host,+vmx -m 4096 -smp 2:1 -drive file=/images/a.qcow2,format=qcow2,id=disk0",
    "node #block123 of disk0: qcow2, keep_synced_s 3600",
)


def forms(text: str) -> tuple[str, ...]:
    """Return a text as it is, in a document, and in a document within a document."""
    return (
        text,
        json.dumps({"a": text, "b": [text, {"c": text}], "z": 1}, indent=2),
        json.dumps([json.dumps([text, 2])]),
    )


@pytest.mark.parametrize("text", TEXTS)
def test_a_secret_goes(text: str) -> None:
    """In a line and in JSON, which stays JSON; what is clean stays as it is."""
    for form in forms(text.replace("§", SECRET)):
        cleaned = redaction.clean(form)
        assert SECRET not in cleaned
        assert redaction.clean(cleaned) == cleaned
    document = json.loads(redaction.clean(forms(text.replace("§", SECRET))[1]))
    assert document["z"] == 1


@pytest.mark.parametrize("text", HARMLESS)
def test_all_else_stays(text: str) -> None:
    """A support request needs it."""
    for form in forms(text):
        assert redaction.clean(form) == form


WHERE = (
    (["curl", "-u", "bob:§", "https://h"], ["curl", "-u", "bob:REMOVED", "https://h"]),
    (["sshpass", "-p", "§", "ssh", "h"], ["sshpass", "-p", "REMOVED", "ssh", "h"]),
    (["x", "--password", "§", "y"], ["x", "--password", "REMOVED", "y"]),
    (["mysql", "-p§", "db"], ["mysql", "-pREMOVED", "db"]),
    (["env", "A_PW=§", "x"], ["env", "A_PW=REMOVED", "x"]),
)


@pytest.mark.parametrize(("argv", "wanted"), WHERE)
def test_of_a_list_only_the_secret_goes(argv: list[str], wanted: list[str]) -> None:
    """The rest of a command line says what was run."""
    for secret in (SECRET, "é§,;b|c", "a\b"):
        text = json.dumps({"argv": [one.replace("§", secret) for one in argv]})
        assert json.loads(redaction.clean(text))["argv"] == wanted


STRANGE = ("a-" * 5_000, "echo " * 2_500, "-u a:b " * 2_500, "<key>" * 2_500, "key=[" * 2_000, " - \n" * 5_000)


@pytest.mark.parametrize("text", STRANGE)
def test_strange_text_does_not_hold_it_up(text: str) -> None:
    """A log may hold anything: no pattern takes a time that grows with its square."""
    begin = time.process_time()
    redaction.clean(f"password=x {text}")
    assert time.process_time() - begin < 5.0
